"""Drawing pictures with a base: one, or a file of cases with several seeds each, in batches and resumable."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from umo.customizers import Customizer, Drawing, draw, load
from umo.customizers.base import Size, default_size, seed_of
from umo.customizers.folder import model_files
from umo.devices import Precision, dtype_of, precision_on
from umo.errors import BadInput, WorkFailed
from umo.evaluation.cases import Case, read_cases, write_cases
from umo.files import replacing
from umo.images import require_image
from umo.model_index import adapter_config

CASES_FILE = "CASES.jsonl"
IMAGES = "images"
KEY = "umo-key"  # of a PNG's text: what the picture was drawn from
_HASHED_WHOLE = 64 * 2**20
BATCH = 4  # more at once leave a core's cache and are no faster
LARGE = 10**9  # weights of a transformer that one picture keeps busy; several would only cost memory


@dataclass(frozen=True)
class _Asked:
    """A picture to be drawn: a case's `rank`-th, its people's photographs, and what tells it from another drawing."""

    case: Case
    photos: tuple[Path, ...]
    rank: int
    path: Path
    key: str


@dataclass(frozen=True)
class Counts:
    """Pictures drawn now, and pictures that were there already."""

    drawn: int
    kept: int


def generate_one(
    model_dir: Path,
    prompt: str,
    references: Sequence[Path],
    out: Path,
    seed: int = 0,
    size: Size | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    lora: Path | None = None,
    device: str = "cpu",
    dtype: Precision | None = None,
) -> None:
    """Draw one picture and write it as PNG.

    Args:
        references: a photograph of each person, in the prompt's order.
        size: height, width; None takes the base's default, and so for steps and guidance.
        dtype: of the weights; None takes bf16 on CUDA and fp32 elsewhere.

    Raises:
        BadInput: the base, the LoRA, a reference, or the size cannot be used.
        WorkFailed: the picture came out as not finite.
    """
    people = [require_image(path, f"reference {path}") for path in references]
    customizer = load(model_dir, lora, device, dtype_of(precision_on(device, dtype)))
    pictures = _draw(customizer, [prompt], [people], [seed], Drawing(size, steps, guidance))
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, pictures[0], f"seed {seed}")


def generate_cases(
    model_dir: Path,
    cases: Path,
    out: Path,
    seeds: int = 1,
    size: Size | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    lora: Path | None = None,
    device: str = "cpu",
    customizer: Customizer | None = None,
    batch: int | None = None,
    dtype: Precision | None = None,
) -> Counts:
    """Draw every case of a file; what a killed run has drawn with the same key is kept.

    A case's pictures are `out/images/CASE-0.png`, `-1`, ...; their noise depends on the case's id and the rank alone,
    so all methods draw a case from the same noise. Cases of one shape (the picture's size and the references') are
    drawn together, which changes a picture by rounding alone. `out/CASES.jsonl` is written last.

    Args:
        cases: CASES.jsonl (see `umo.evaluation.cases`); its `images` are ignored, and of several photographs of a
            person the first is used.
        out: folder.
        seeds: pictures a case.
        size, steps, guidance: as `generate_one`.
        customizer: `model_dir` with `lora`, where the caller has loaded it already.
        batch: pictures drawn at once; None takes 1 for a large base and BATCH for any other.
        dtype: as `generate_one`.

    Raises:
        BadInput: before any drawing: a case, a reference, the base, the LoRA or the size cannot be used.
        WorkFailed: a picture came out as not finite.
    """
    to_draw = read_cases(cases, drawn=False)
    people = {case.case_id: [cases.parent / photos[0] for photos in case.references] for case in to_draw}
    known = _check_references(cases, people)
    customizer = customizer or load(model_dir, lora, device, dtype_of(precision_on(device, dtype)))
    how = Drawing(size, steps, guidance)
    for case in to_draw:
        _check(customizer, case, how)
    base = [_files_digest(model_dir, model_files(model_dir)), _lora_digest(lora) if lora else None]
    if customizer.dtype != torch.float32:
        base.append(str(customizer.dtype))
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    shapes: dict[tuple, list[_Asked]] = {}
    for case in to_draw:
        photos = tuple(people[case.case_id])
        what = [base, case.prompt, [known[path][0] for path in photos], asdict(how), case.case_id]
        shapes.setdefault(tuple(known[path][1] for path in photos), []).extend(
            _Asked(case, photos, rank, out / name, _digest([what, rank]))
            for rank, name in enumerate(_names(case.case_id, seeds))
        )
    batch = batch or (1 if sum(map(torch.numel, customizer.transformer.parameters())) > LARGE else BATCH)
    batches = [same[start : start + batch] for same in shapes.values() for start in range(0, len(same), batch)]
    bar = tqdm(batches, desc=f"draw with {customizer.name}", unit="batch")
    drawn = sum(_draw_missing(customizer, part, how) for part in bar)
    write_cases(out / CASES_FILE, [_as_drawn(case, cases.parent, out, seeds) for case in to_draw])
    return Counts(drawn, len(to_draw) * seeds - drawn)


def _draw_missing(customizer: Customizer, asked: Sequence[_Asked], how: Drawing) -> int:
    """The pictures of a batch that are not there yet; how many those were."""
    missing = [one for one in asked if _key(one.path) != one.key]
    if missing:
        photos = {paths: [require_image(path, str(path)) for path in paths] for paths in {one.photos for one in asked}}
        prompts, seeds = zip(*((one.case.prompt, seed_of(one.case.case_id, one.rank)) for one in asked), strict=True)
        # The whole batch, whichever are missing: a resumed run must give the same bytes as a whole one.
        pictures = _draw(customizer, prompts, [photos[one.photos] for one in asked], seeds, how)
        for one, picture in zip(asked, pictures, strict=True):
            if one in missing:
                _write(one.path, picture, one.key)
    return len(missing)


def _check_references(cases: Path, people: dict[str, list[Path]]) -> dict[Path, tuple[str, tuple[int, ...]]]:
    """Digest and shape of every reference that will be used, each of which can be read."""
    known: dict[Path, tuple[str, tuple[int, ...]]] = {}
    for case_id, paths in people.items():
        for path in paths:
            if path not in known:
                shape = require_image(path, f"{cases}: case {case_id}: reference {path}").shape
                known[path] = hashlib.sha256(path.read_bytes()).hexdigest(), shape
    return known


def _check(customizer: Customizer, case: Case, how: Drawing) -> None:
    most = customizer.settings.max_references
    if len(case.references) > most:
        raise BadInput(
            f"case {case.case_id}: {len(case.references)} references, and {customizer.name} takes at most {most}; "
            "leave the case out"
        )
    customizer.check_size(how.size or default_size(customizer.settings, len(case.references)))


def _draw(
    customizer: Customizer,
    prompts: Sequence[str],
    photos: Sequence[Sequence[np.ndarray]],
    seeds: Sequence[int],
    how: Drawing,
) -> list[np.ndarray]:
    """(H, W, 3) uint8 each."""
    pictures = draw(customizer, prompts, photos, seeds, how)
    if not torch.isfinite(pictures).all():
        raise WorkFailed(
            f"{customizer.name}: a picture came out as not finite; check the base's and the LoRA's weights"
        )
    return list(((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())


def _names(case_id: str, seeds: int) -> list[str]:
    """File names of a case's pictures, beside CASES.jsonl."""
    plain = re.fullmatch(r"[\w-][\w.-]{0,80}", case_id, re.ASCII)
    stem = case_id if plain else _digest(case_id)[:24]
    return [f"{IMAGES}/{stem}-{rank}.png" for rank in range(seeds)]


def _write(path: Path, picture: np.ndarray, key: str) -> None:
    """Atomically, with the key inside: a file that is there under its name is whole."""
    text = PngInfo()
    text.add_text(KEY, key)
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=6, pnginfo=text)


def _key(path: Path) -> str | None:
    """What a picture that is there already was drawn from."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(KEY)
    except (OSError, SyntaxError, ValueError):
        return None


def _as_drawn(case: Case, source: Path, out: Path, seeds: int) -> Case:
    """The case as drawn: its images named, its other paths relative to `out` instead of `source`."""

    def moved(path: str) -> str:
        return os.path.relpath((source / path).resolve(), out.resolve())

    return replace(
        case,
        references=tuple(tuple(moved(path) for path in person) for person in case.references),
        images=tuple(_names(case.case_id, seeds)),
        target=moved(case.target) if case.target else None,
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _files_digest(root: Path, files: Sequence[Path]) -> str:
    """Names and bytes of files; of a very large one its size and time of change instead of its bytes."""
    parts = []
    for file in files:
        state = file.stat()
        large = state.st_size > _HASHED_WHOLE
        content = [state.st_size, state.st_mtime_ns] if large else hashlib.sha256(file.read_bytes()).hexdigest()
        parts.append([file.relative_to(root).as_posix(), content])
    return _digest(parts)


def _lora_digest(lora: Path) -> str:
    files = [lora] if lora.is_file() else sorted(lora.rglob("*.safetensors"))
    configs = [config for file in files if (config := adapter_config(file))]
    return _files_digest(lora.parent if lora.is_file() else lora, files + configs)
