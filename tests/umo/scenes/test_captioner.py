"""The captioner, on a small random LLaVA saved as transformers saves one: what it says is noise, how it is read not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.small_models import INSTRUCTION, WORDS, write_captioner
from umo.errors import BadInput
from umo.scenes.captioner import Captioner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioner(tmp_path_factory.mktemp("captioner"))


def test_a_text_a_picture_alone_or_in_a_batch(folder, orl: Callable[[int, int], np.ndarray], group_photo):
    captioner = Captioner.load(folder)
    pictures = [orl(1, 1), group_photo, orl(20, 3)[:200]]
    together = captioner.describe(pictures, INSTRUCTION, 12)
    assert len(set(together)) > 1, "the picture counts"
    assert all(set(text.split()) <= {*WORDS.split(), *INSTRUCTION.split(), "<unk>"} for text in together)
    assert all(1 <= len(text.split()) <= 12 for text in together)
    assert INSTRUCTION not in " ".join(together), "the question is no part of the answer"
    assert together == [captioner.describe([picture], INSTRUCTION, 12)[0] for picture in pictures]
    assert together == Captioner.load(folder).describe(pictures, INSTRUCTION, 12)


def test_the_first_token_is_the_models_own_argmax(folder, group_photo):
    """Against a plain forward pass of the same model on the processor's own inputs."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = processor(text=f"<image> {INSTRUCTION} ", images=Image.fromarray(group_photo), return_tensors="pt")
    with torch.no_grad():
        token = model(**inputs).logits[0, -1].argmax()
    assert Captioner.load(folder).describe([group_photo], INSTRUCTION, 1) == [processor.decode(token)]


def test_what_cannot_caption_is_one_line(folder, tmp_path):
    with pytest.raises(BadInput, match=r"config.json is missing"):
        Captioner.load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no chat template"):
        Captioner.load(write_captioner(tmp_path / "base", chat=False))
    damaged = write_captioner(tmp_path / "damaged")
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be loaded on cpu as a captioner") as caught:
        Captioner.load(damaged)
    assert "\n" not in str(caught.value)
