"""Compositing, prompts and the cheap descriptions of pictures, against independent arithmetic."""

import cv2
import numpy as np
import pytest

from umo import quality
from umo.scenes import compositing
from umo.scenes.compositing import Light
from umo.scenes.prompts import COLOURS, TEXTURES, positions, prompt

LANDMARKS = np.array([[40, 50], [72, 50], [56, 70], [44, 84], [68, 84]], np.float64)


def test_placement_puts_the_head_where_it_should_be():
    matrix = compositing.placement(LANDMARKS, (100, 60), 25, roll=10)
    centre, scale, roll = compositing.head_frame(compositing.transform(LANDMARKS, matrix))
    assert centre == pytest.approx((100, 60))
    assert scale == pytest.approx(25)
    assert np.degrees(roll) == pytest.approx(10)


def test_a_box_moves_with_its_head():
    box = np.array([30, 30, 80, 100])
    matrix = compositing.placement(LANDMARKS, (100, 60), compositing.head_frame(LANDMARKS)[1] / 2)
    moved = compositing.transform_box(box, matrix)
    assert moved[2] - moved[0] == pytest.approx(25)
    assert moved[3] - moved[1] == pytest.approx(35)
    centre = compositing.transform(np.array([[55, 65]]), matrix)[0]
    assert (moved[:2] + moved[2:]) / 2 == pytest.approx(centre, abs=1e-4)


def test_a_pasted_head_is_the_photograph_inside_and_the_scene_outside():
    rng = np.random.default_rng(0)
    photo = cv2.GaussianBlur(rng.integers(0, 255, (140, 120, 3)).astype(np.uint8), (0, 0), 3)
    scene = np.full((140, 300, 3), 200, np.float32)
    shift = np.array([[1, 0, 100], [0, 1, 0]], np.float64)
    out = compositing.place_face(scene, photo, LANDMARKS, shift)
    assert np.abs(out[60:80, 145:165] - photo[60:80, 45:65]).max() < 1
    assert (out[:, :90] == 200).all()
    assert (out[:, 230:] == 200).all()
    mask = compositing.head_mask(LANDMARKS, (140, 120))
    assert 0 < ((mask > 0) & (mask < 1)).mean() < 0.4, "the edge is soft"


def test_light_multiplies_and_slopes():
    photo = np.full((140, 120, 3), 100, np.uint8)
    scene = np.zeros((140, 120, 3), np.float32)
    identity = np.eye(3)[:2]
    lit = compositing.place_face(scene, photo, LANDMARKS, identity, Light(1.2, (1.0, 0.5, 1.0), 0.5))
    row = lit[70]
    assert row[59, 0] / row[59, 1] == pytest.approx(2, rel=1e-3)
    assert row[75, 0] > row[40, 0]
    assert row[59, 0] == pytest.approx(120, rel=0.02)


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("colour", COLOURS)
def test_backgrounds_have_their_colour(texture, colour):
    drawn = compositing.background(f"{texture} {colour}", (128, 256), np.random.default_rng(3))
    assert drawn.shape == (128, 256, 3)
    assert 0 <= drawn.min() <= drawn.max() <= 255
    mean, named = drawn.reshape(-1, 3).mean(0), np.array(COLOURS[colour], np.float64)
    nearest = min(COLOURS, key=lambda name: np.linalg.norm(mean - COLOURS[name]))
    assert nearest == colour, (mean, named)


def test_textures_differ():
    spread = {
        texture: compositing.background(f"{texture} blue", (128, 256), np.random.default_rng(1)).std(axis=(0, 1)).mean()
        for texture in TEXTURES
    }
    assert spread["plain"] < min(spread[texture] for texture in TEXTURES if texture != "plain")


@pytest.mark.parametrize(
    ("centres", "background", "expected"),
    [
        ([0.5], None, "A photo of one person: the first person in the middle."),
        (
            [0.9],
            "plain red",
            "A photo of one person in front of a plain red background: the first person on the right.",
        ),
        ([0.7, 0.2], None, "A photo of two people: the first person on the right and the second person on the left."),
        (
            [0.1, 0.5, 0.9],
            "striped blue",
            "A photo of three people in front of a striped blue background: the first person on the left, "
            "the second person in the middle and the third person on the right.",
        ),
    ],
)
def test_prompts_say_how_many_who_where_and_what(centres, background, expected):
    assert prompt(centres, background) == expected


def test_more_people_are_counted_from_the_left():
    assert positions([0.9, 0.1, 0.3, 0.6]) == [
        "fourth from the left",
        "first from the left",
        "second from the left",
        "third from the left",
    ]


def test_pose_of_turned_landmarks():
    assert quality.pose(LANDMARKS) == pytest.approx((0, 0, 0), abs=4)
    turned = LANDMARKS.copy()
    turned[2, 0] += 8
    assert quality.pose(turned)[0] == pytest.approx(30, abs=1)
    angle = np.radians(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    yaw, _, roll = quality.pose(turned @ rotation.T)
    assert roll == pytest.approx(20)
    assert yaw == pytest.approx(30, abs=1), "roll does not change yaw"


def test_blur_lowers_sharpness_and_keeps_the_hash(orl):
    photo = orl(1, 1)
    blurred = cv2.GaussianBlur(photo, (0, 0), 8)
    assert quality.sharpness(blurred) < 0.5 * quality.sharpness(photo)
    bits = [int(quality.perceptual_hash(image), 16) for image in (photo, cv2.GaussianBlur(photo, (0, 0), 2), orl(2, 1))]
    assert (bits[0] ^ bits[1]).bit_count() <= 4 < (bits[0] ^ bits[2]).bit_count()


@pytest.mark.parametrize("box", [(40, 30, 80, 90), (-10, -10, 30, 40), (90, 60, 140, 130), (0, 0, 400, 400)])
def test_a_square_crop_stays_inside_and_knows_where_it_was(box):
    y, x = np.mgrid[:120, :150]
    image = np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)
    crop, matrix = quality.square_crop(image, np.array(box), 1.5, 64)
    assert crop.shape[0] == crop.shape[1] <= 64
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    for at in ((10, 10), (crop.shape[1] - 11, crop.shape[0] - 11)):
        source = inverse @ [*at, 1]
        assert crop[at[1], at[0], 0] == pytest.approx(source[0], abs=1)
        assert crop[at[1], at[0], 1] == pytest.approx(source[1], abs=1)
