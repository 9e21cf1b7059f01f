"""Score drawn pictures with a judge: cases in, `scores.parquet` and `metrics.json` out.

Who judges, and what a judge sees, is `umo.evaluation.judges`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from umo import records
from umo.errors import BadInput, WorkFailed
from umo.evaluation import metrics
from umo.evaluation.cases import Case, read_cases
from umo.evaluation.judges import NO_FACE, Gallery, Seen, identity, in_parts
from umo.faces.base import FaceModel
from umo.files import write_text
from umo.images import ImageError
from umo.matching import NONE, assign, cosine_matrix
from umo.rewards import mimr, sir

CASES_AT_ONCE = 4


def reference_vectors(references: Sequence[Sequence[str]], gallery: Gallery) -> np.ndarray:
    """(n, d) unit vectors: of each person the normalised mean over the photographs' largest faces.

    Raises:
        ImageError: with the path in front.
    """
    vectors = []
    for photos in references:
        faces = []
        for path in photos:
            try:
                faces.append(gallery[path].main())
            except ImageError as error:
                raise ImageError(f"{path}: {error}") from error
        mean = np.mean(faces, axis=0)
        vectors.append(mean / max(np.linalg.norm(mean), 1e-12))
    return np.stack(vectors)


def diagnose(references: Sequence[str], image: str, faces: FaceModel) -> dict[str, Any]:
    """One picture against its references, with one network: scores, rewards, boxes (for `umo match`).

    Raises:
        BadInput: a picture cannot be read, or a reference shows no face.
    """
    gallery = Gallery(faces, Path())
    gallery.look([*references, image])
    try:
        vectors = reference_vectors([[path] for path in references], gallery)
    except ImageError as error:
        raise BadInput(str(error)) from error
    seen = gallery[image]
    if seen.error:
        raise BadInput(f"{image}: {seen.error}")
    cosines = cosine_matrix(vectors, seen.embeddings)
    batch = torch.from_numpy(cosines)[None]
    valid = torch.ones_like(batch, dtype=torch.bool)
    return {
        "faces": faces.name,
        "same_person_cosine": faces.same_person_cosine,
        "references": list(references),
        "image": image,
        **metrics.score(cosines, faces.same_person_cosine),
        "boxes": seen.boxes.tolist(),
        "sir": float(sir(batch, valid)),
        "mimr": float(mimr(batch, valid)),
    }


@dataclass(frozen=True, slots=True)
class Scored:
    """The rows of one case (`records.SCORES`) and what failed in it ({case_id, path, error})."""

    rows: list[dict[str, Any]]
    failures: list[dict[str, str]]


def score_case(case: Case, gallery: Gallery) -> Scored:
    """Score every picture of a case. Nothing raises: a failure is in the row or in the failures, and the rest goes on.

    A bad reference makes the case impossible to judge (null metrics); a bad target costs copy_paste alone; a bad drawn
    picture counts as a picture without a face.
    """
    gallery.look(case.paths)
    failures = [
        {"case_id": case.case_id, "path": path, "error": gallery[path].error or NO_FACE}
        for path in dict.fromkeys(photo for person in case.references for photo in person)
        if not len(gallery[path].sides)
    ]
    if failures:
        reason = "cannot be judged: reference " + "; ".join(f"{bad['path']}: {bad['error']}" for bad in failures)
        return Scored(
            [_row(case, seed, gallery.judge.name, error=reason) for seed in range(len(case.images))], failures
        )
    vectors = reference_vectors(case.references, gallery)
    target = gallery[case.target] if case.target else None
    if case.target and target and not len(target.sides):
        failures.append({"case_id": case.case_id, "path": case.target, "error": target.error or NO_FACE})
    rows = []
    for seed, path in enumerate(case.images):
        seen = gallery[path]
        if seen.error:
            failures.append({"case_id": case.case_id, "path": path, "error": seen.error})
        scores = metrics.score(cosine_matrix(vectors, seen.embeddings), gallery.judge.same_person_cosine)
        pasted = _copy_paste(vectors, seen, target, scores["assignment"]) if target else None
        boxes = seen.boxes.tolist()
        name = gallery.judge.name
        rows.append(_row(case, seed, name, **scores, copy_paste=pasted, boxes=boxes, error=seen.error))
    return Scored(rows, failures)


def _row(case: Case, seed: int, judge: str, **values: Any) -> dict[str, Any]:
    known = {
        "case_id": case.case_id,
        "image": case.images[seed],
        "seed": seed,
        "judge": judge,
        "people": list(case.people) if case.people else None,
        "n": len(case.references),
    }
    return dict.fromkeys(records.SCORES.names) | known | values


def _copy_paste(references: np.ndarray, drawn: Seen, target: Seen, assignment: Sequence[int]) -> float | None:
    """Angles between reference, drawn face and target face of each person; the target's faces are assigned likewise."""
    theirs = target.embeddings.astype(float)  # near 1 an angle needs the digits
    to_target = cosine_matrix(references, theirs)
    in_target = assign(to_target)
    values = np.full((3, len(references)), np.nan)
    for person, (face, other) in enumerate(zip(assignment, in_target, strict=True)):
        if NONE not in (face, other):
            vector = drawn.embeddings[face].astype(float)
            values[:, person] = vector @ references[person], vector @ theirs[other], to_target[person, other]
    return metrics.copy_paste(*values)


def evaluate(
    cases_file: Path,
    out: Path,
    judge: FaceModel,
    seen: Mapping[str, Seen] = MappingProxyType({}),
    look_first: Callable[[Gallery, Sequence[str]], None] | None = None,
) -> dict[str, Any]:
    """Score every case and write `out/scores.parquet`, then `out/metrics.json`.

    What the judge has seen is kept in `out/.partial` until then, so that a killed run goes on where it stopped.

    Args:
        seen: what this judge saw earlier, by the pictures' sha256; it does not look at those again.
        look_first: looks at what these paths show, in processes perhaps, before the cases are scored.

    Returns:
        The content of metrics.json.

    Raises:
        BadInput: as `read_cases`, before any work.
        WorkFailed: no case could be judged, or `out` cannot be written.
    """
    cases, described = read_cases(cases_file), identity(judge)
    kept = out / ".partial" / hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    gallery = Gallery(judge, cases_file.parent, seen, kept)
    with _writing(out):
        kept.mkdir(parents=True, exist_ok=True)
        if look_first:
            look_first(gallery, [path for case in cases for path in case.paths])
        scored = list(_score_all(cases, gallery))
    rows = [row for case in scored for row in case.rows]
    failures = [failure for case in scored for failure in case.failures]
    if all(row["n_faces"] is None for row in rows):
        first = failures[0]
        raise WorkFailed(
            f"{cases_file}: none of {len(cases)} cases could be judged; the first: {first['path']}: {first['error']}"
        )
    result = {
        **summarise(rows),
        "by_n": {str(n): summarise([row for row in rows if row["n"] == n]) for n in sorted({r["n"] for r in rows})},
        "judge": described,
        "cases": len(cases),
        "images": len(rows),
        "clustered": any(case.people for case in cases),
        "failures": failures,
    }
    with _writing(out):
        (out / "metrics.json").unlink(missing_ok=True)
        records.write(out / "scores.parquet", rows, records.SCORES)
        write_text(out / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        shutil.rmtree(out / ".partial", ignore_errors=True)
    return result


def _score_all(cases: Sequence[Case], gallery: Gallery) -> Iterator[Scored]:
    """Score a few cases at a time, so that their pictures share batches."""
    with tqdm(total=len(cases), unit="case", desc="evaluate", disable=None) as progress:
        for part in in_parts(cases, CASES_AT_ONCE):
            gallery.look(path for case in part for path in case.paths)
            for case in part:
                yield score_case(case, gallery)
                progress.update()


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of scores -> each metric's mean and interval over cases."""
    return {
        name: asdict(metrics.over_cases(rows, [metrics.of_row(row, name) for row in rows])) for name in metrics.METRICS
    }


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """An OSError inside becomes one line that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise WorkFailed(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}); "
            "make room or choose another --out, then run the same command again"
        ) from error
