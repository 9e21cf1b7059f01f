"""Drawing a file of cases with several seeds each, in batches and resumable."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from umo.customizers import Customizer, Drawing, load
from umo.customizers.base import Size, default_size
from umo.customizers.folder import model_files
from umo.customizers.hub import local_folder
from umo.devices import Precision, dtype_of, precision_on
from umo.drawing import batches as drawing
from umo.drawing.batches import Asked, Batches, Cut, Progress
from umo.drawing.files import digest, files_digest, lora_digest, read_key
from umo.errors import BadInput
from umo.evaluation.cases import Case, read_cases, relocated, write_cases
from umo.guidance import Guidance

CASES_FILE = "CASES.jsonl"
IMAGES = "images"


@dataclass(frozen=True)
class Counts:
    """Pictures drawn now, pictures that were there already, and whether no case has one missing, in any shard."""

    drawn: int
    kept: int
    whole: bool = True


def generate_cases(
    model_dir: Path | str,
    cases: Path,
    out: Path,
    seeds: int = 1,
    size: Size | None = None,
    steps: int | None = None,
    guidance: Guidance | float | None = None,
    lora: Path | None = None,
    device: str = "cpu",
    customizer: Customizer | None = None,
    batch: int | None = None,
    crop: Cut | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
    dtype: Precision | None = None,
) -> Counts:
    """Draw every case of a file; what a killed run has drawn with the same key is kept.

    A case's pictures are `out/images/CASE-0.png`, `-1`, ...; their noise depends on the case's id and the rank alone,
    so all methods draw a case from the same noise. Cases of one shape (the picture's size and, in a family that does
    not mix them, the references') are drawn together, which changes a picture by rounding alone. `out/CASES.jsonl` is
    written when all pictures are there.

    Args:
        model_dir: a diffusers folder, or a name on the Hub (`org/name` or `org/name@revision`).
        cases: CASES.jsonl (see `umo.evaluation.cases`); its `images` are ignored, and of several photographs of a
            person the first is used.
        out: folder.
        seeds: pictures a case.
        size, steps, guidance: as in `Drawing`.
        customizer: `model_dir` with `lora`, where the caller has loaded it already.
        batch: pictures drawn at once; None takes 1 for a large base and BATCH for any other.
        crop: finds what a base is shown of each photograph, such as `photographs.face_square`; None takes it as it is,
            for cases' photographs mostly are cut.
        shard: (k, n) draws every n-th case from the k-th on, k from 1 to n, beside other processes with the same `out`.
        progress: called after every batch with the number of pictures that are there, and of all of the shard.
        dtype: of the weights; None takes bf16 on CUDA and fp32 elsewhere.

    Raises:
        BadInput: before any drawing: a case, a reference, the base, the LoRA or the size cannot be used.
        WorkFailed: a picture came out as not finite.
    """
    to_draw = read_cases(cases, drawn=False)
    people = {case.case_id: tuple(cases.parent / photos[0] for photos in case.references) for case in to_draw}
    folder = local_folder(model_dir)
    known = drawing.find_references(cases, people)
    customizer = customizer or load(folder, lora, device, dtype_of(precision_on(device, dtype)))
    how = Drawing(size, steps, guidance)
    for case in to_draw:
        _check(customizer, case, how)
    factor = customizer.settings.reference_crop
    known = drawing.cropped(known, factor, crop) if crop else known
    drawing.warn_of_unknown_words(customizer, {f"the prompt of {case.case_id}": case.prompt for case in to_draw})
    base = [files_digest(folder, model_files(folder)), lora_digest(lora) if lora else None]
    if customizer.dtype != torch.float32:
        base.append(str(customizer.dtype))
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    asked: dict[str, list[Asked]] = {}
    for case in to_draw:
        photos = people[case.case_id]
        what: list[object] = [base, case.prompt, [known[path].digest for path in photos], _said(how), case.case_id]
        what += [factor] if crop else []
        names = enumerate(picture_names(case.case_id, seeds))
        pictures = [Asked(case, photos, rank, out / name, digest([what, rank])) for rank, name in names]
        asked[case.case_id] = pictures
    own = to_draw[shard[0] - 1 :: shard[1]]
    alike: dict[tuple, list[Asked]] = {}
    for case in own:
        shapes = () if customizer.mixes_references else tuple(known[path].shape for path in people[case.case_id])
        shape = (size or default_size(customizer.settings, len(case.references)), *shapes)
        alike.setdefault(shape, []).extend(asked[case.case_id])
    batch = batch or drawing.at_once(customizer)
    batches = [same[start : start + batch] for same in alike.values() for start in range(0, len(same), batch)]
    drawn = Batches(customizer, how, batches, known).draw(progress)
    whole = all(read_key(one.path) == one.key for pictures in asked.values() for one in pictures)
    if whole:
        write_cases(out / CASES_FILE, [_as_drawn(case, cases.parent, out, seeds) for case in to_draw])
    return Counts(drawn, len(own) * seeds - drawn, whole)


def _said(how: Drawing) -> dict[str, object]:
    """What a picture's key holds of how it is drawn; a guidance that is a number, as one."""
    guidance = how.guidance.model_dump() if isinstance(how.guidance, Guidance) else how.guidance
    said: dict[str, object] = {"size": how.size, "steps": how.steps, "guidance": guidance}
    return said if how.negative is None else said | {"negative": how.negative}


def _check(customizer: Customizer, case: Case, how: Drawing) -> None:
    most = customizer.settings.max_references
    if len(case.references) > most:
        raise BadInput(
            f"case {case.case_id}: {len(case.references)} references, and {customizer.name} takes at most {most}; "
            "leave the case out"
        )
    customizer.check_size(how.size or default_size(customizer.settings, len(case.references)))


def picture_names(case_id: str, seeds: int) -> list[str]:
    """File names of a case's pictures, beside CASES.jsonl."""
    plain = re.fullmatch(r"[\w-][\w.-]{0,80}", case_id, re.ASCII)
    stem = case_id if plain else digest(case_id)[:24]
    return [f"{IMAGES}/{stem}-{rank}.png" for rank in range(seeds)]


def _as_drawn(case: Case, source: Path, out: Path, seeds: int) -> Case:
    """The case as drawn: its images named, its other paths relative to `out` instead of `source`."""
    there = relocated(replace(case, images=()), source, out)
    return replace(there, images=tuple(picture_names(case.case_id, seeds)))
