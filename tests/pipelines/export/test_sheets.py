"""Contact sheets keep their columns."""

import numpy as np

from pipelines.export.sheets import GAP, contact_sheet


def colour(width: int, value: int, height: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_columns_are_aligned_and_the_last_picture_stands_last():
    sheet = contact_sheet([[colour(16, 1), colour(48, 2), colour(64, 3)], [colour(32, 4), colour(20, 5)]], 32)
    assert sheet.shape == (2 * 32 + GAP, 32 + GAP + 48 + GAP + 64, 3)
    last = 32 + GAP + 48 + GAP
    assert (sheet[:32, :16] == 1).all()
    assert (sheet[:32, 32 + GAP : 32 + GAP + 48] == 2).all()
    assert (sheet[:32, last:] == 3).all()
    assert (sheet[32 + GAP :, :32] == 4).all()
    assert (sheet[32 + GAP :, last : last + 20] == 5).all()
    assert (sheet[32 + GAP :, 32:last] == 255).all()


def test_pictures_are_scaled_to_one_height():
    assert contact_sheet([[colour(20, 7, height=10)]], 40).shape == (40, 80, 3)
