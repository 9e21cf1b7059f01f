"""Drawing people from a user's own photographs of them; a file of cases is `umo.drawing.cases`."""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from umo.customizers import Condition, Customizer, Drawing, load
from umo.customizers.base import Size, default_size, draw_embedded
from umo.customizers.hub import local_folder
from umo.devices import Precision, dtype_of, precision_on
from umo.drawing import batches as drawing
from umo.drawing.batches import Progress
from umo.drawing.cases import CASES_FILE, Counts, generate_cases
from umo.drawing.files import write_picture
from umo.drawing.photographs import Photograph, face_square, read_photograph
from umo.guidance import Guidance

__all__ = ["CASES_FILE", "Counts", "generate", "generate_cases", "generate_one"]


def generate(
    model: Path | str | Customizer,
    prompt: str,
    references: Sequence[Photograph],
    seeds: Sequence[int] = (0,),
    how: Drawing | None = None,
    lora: Path | None = None,
    device: str = "cpu",
    crop: bool = True,
    dtype: Precision | None = None,
    progress: Progress | None = None,
) -> Iterator[Image.Image]:
    """Draw some people once for each seed; the prompt and their photographs are embedded once.

    Args:
        model: a diffusers folder, a name on the Hub (`org/name` or `org/name@revision`), or what `load` gave; then
            `lora`, `device` and `dtype` are its own.
        references: a photograph of each person, in the prompt's order: a file, or a picture of Pillow's or NumPy's.
        seeds: the same one gives the same picture.
        how: size (height, width), steps, guidance, negative prompt.
        crop: find each one's face and cut the photograph as the base was trained; else it is taken as it is.
        dtype: of the weights; None takes bf16 on CUDA and fp32 elsewhere.
        progress: called after every denoising step with the number of steps done, and of all.

    Returns:
        The pictures, each drawn when it is asked for (on a small base, `BATCH` at once).

    Raises:
        BadInput: at once: the base, the LoRA, a reference, or the size cannot be used.
        WorkFailed: the picture came out as not finite.
    """
    how = how or Drawing()
    names = [f"reference {one if isinstance(one, Path | str) else k}" for k, one in enumerate(references, start=1)]
    pictures = [read_photograph(one, name) for one, name in zip(references, names, strict=True)]
    if isinstance(model, Path | str):
        customizer = load(local_folder(model), lora, device, dtype_of(precision_on(device, dtype)))
    else:
        customizer = model
    size = how.size or default_size(customizer.settings, len(pictures))
    customizer.check_size(size)
    if crop:
        factor = customizer.settings.reference_crop
        pictures = [one[face_square(one, factor, name)] for one, name in zip(pictures, names, strict=True)]
    drawing.warn_of_unknown_words(customizer, {"the prompt": prompt})
    with torch.no_grad():
        condition = customizer.condition([prompt], [pictures], how.guidance, how.negative)
    return _drawn(customizer, condition, seeds, size, how.steps, progress)


def _drawn(
    customizer: Customizer,
    condition: Condition,
    seeds: Sequence[int],
    size: Size,
    steps: int | None,
    progress: Progress | None,
) -> Iterator[Image.Image]:
    batch = drawing.at_once(customizer)
    of = (steps or customizer.settings.steps) * math.ceil(len(seeds) / batch)
    done = count(1)

    def on_step() -> None:
        if progress:
            progress(next(done), of)

    for start in range(0, len(seeds), batch):
        part = seeds[start : start + batch]
        drawn = draw_embedded(customizer, condition.take([0] * len(part)), part, size, steps, on_step)
        yield from map(Image.fromarray, drawing.pixels(customizer, drawn))


def generate_one(
    model: Path | str,
    prompt: str,
    references: Sequence[Path],
    out: Path,
    seed: int = 0,
    size: Size | None = None,
    steps: int | None = None,
    guidance: Guidance | float | None = None,
    lora: Path | None = None,
    device: str = "cpu",
    crop: bool = True,
    dtype: Precision | None = None,
) -> None:
    """Draw one picture as `generate` does, with a progress bar, and write it as PNG."""

    def progress(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)

    how = Drawing(size, steps, guidance)
    drawn = generate(model, prompt, references, (seed,), how, lora, device, crop, dtype, progress)
    with tqdm(desc="draw", unit="step") as bar:
        (picture,) = drawn
    out.parent.mkdir(parents=True, exist_ok=True)
    write_picture(out, np.asarray(picture), f"seed {seed}")
