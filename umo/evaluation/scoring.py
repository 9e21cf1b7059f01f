"""Score drawn pictures with a judge: cases in, `scores.parquet` and `metrics.json` out.

Who judges, and what a judge sees, is `umo.evaluation.judges`.
"""

import hashlib
import json
import shutil
from collections import defaultdict
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
from umo.evaluation.strangers import strangers, warning
from umo.faces.base import FaceModel
from umo.files import write_text
from umo.images import ImageError
from umo.matching import NONE, assign, assigned_cosines, cosine_matrix
from umo.rewards import mimr, sir

CASES_AT_ONCE = 4
LARGEST = "the largest is taken; crop it to the person to be sure"
STRANGERS_AT_MOST = 2_000  # people; their pairs go with the square


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
        **metrics.score(cosines, faces.same_person_cosine, references=vectors, faces=seen.embeddings),
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

    A bad reference makes the case impossible to judge (null metrics); a bad target costs what needs one; a bad drawn
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
    failures = [
        {"case_id": case.case_id, "path": path, "error": f"reference with {len(gallery[path].sides)} faces: {LARGEST}"}
        for path in dict.fromkeys(photo for person in case.references for photo in person)
        if len(gallery[path].sides) > 1
    ]
    vectors = reference_vectors(case.references, gallery)
    target = gallery[case.target] if case.target else None
    if case.target and target and not len(target.sides):
        failures.append({"case_id": case.case_id, "path": case.target, "error": target.error or NO_FACE})
    rows = []
    for seed, path in enumerate(case.images):
        seen = gallery[path]
        if seen.error:
            failures.append({"case_id": case.case_id, "path": path, "error": seen.error})
        name, threshold = gallery.judge.name, gallery.judge.same_person_cosine
        scores = metrics.score(
            cosine_matrix(vectors, seen.embeddings),
            threshold,
            references=vectors,
            faces=seen.embeddings,
            boxes=seen.boxes,
            places=case.asked_places,
        )
        if target and len(target.sides):
            scores |= _against_target(vectors, seen, target, scores["assignment"], threshold)
        rows.append(_row(case, seed, name, **scores, boxes=seen.boxes.tolist(), error=seen.error))
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


def _against_target(
    references: np.ndarray, drawn: Seen, target: Seen, assignment: Sequence[int], threshold: float
) -> dict[str, Any]:
    """What needs a target that shows somebody, named as in `records.SCORES`; its faces are assigned likewise."""
    theirs = target.embeddings.astype(float)  # near 1 an angle needs the digits
    to_target = cosine_matrix(references, theirs)
    in_target = assign(to_target)
    values = np.full((3, len(references)), np.nan)
    for person, (face, other) in enumerate(zip(assignment, in_target, strict=True)):
        if other != NONE:
            values[2, person] = to_target[person, other]
        if NONE not in (face, other):
            vector = drawn.embeddings[face].astype(float)
            values[:2, person] = vector @ references[person], vector @ theirs[other]
    of_reference, of_target, apart = np.where(values[0] >= threshold, values, np.nan)  # of the covered alone
    return {
        "target_cosines": [None if np.isnan(cosine) else float(cosine) for cosine in values[2]],
        "sim_target": metrics.sim_target(values[1], values[2]),
        "copy_paste": metrics.copy_paste(*values),
        "copy_paste_covered": metrics.copy_paste(of_reference, of_target, apart, metrics.CLEAR_ANGLE),
    }


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
    cases = read_cases(cases_file)
    with writing(out):
        gallery = Gallery(judge, cases_file.parent, seen, kept_in(out, judge))
        if look_first:
            look_first(gallery, [path for case in cases for path in case.paths])
        scored = list(_score_all(cases, gallery))
    rows = [row for case in scored for row in case.rows]
    if all(row["n_faces"] is None for row in rows):
        first = next(failure for case in scored for failure in case.failures)
        raise WorkFailed(
            f"{cases_file}: none of {len(cases)} cases could be judged; the first: {first['path']}: {first['error']}"
        )
    result = metrics_of(cases, scored, gallery)
    with writing(out):
        (out / "metrics.json").unlink(missing_ok=True)
        records.write(out / "scores.parquet", rows, records.SCORES)
        write_text(out / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        shutil.rmtree(out / ".partial", ignore_errors=True)
    return result


def metrics_of(cases: Sequence[Case], scored: Sequence[Scored], gallery: Gallery) -> dict[str, Any]:
    """The content of metrics.json: means with intervals, in all, by number of people and by tag, and what made them."""
    rows = [row for case in scored for row in case.rows]
    return {
        **summarise(rows),
        "by_n": {str(n): summarise([row for row in rows if row["n"] == n]) for n in sorted({r["n"] for r in rows})},
        **_by_tag(cases, rows),
        **_gap(cases, rows),
        "strangers": _strangers(cases, gallery),
        "judge": identity(gallery.judge),
        "cases": len(cases),
        "images": len(rows),
        "clustered": any(case.people for case in cases),
        "failures": [failure for case in scored for failure in case.failures],
    }


def kept_in(out: Path, judge: FaceModel) -> Path:
    """The folder, made now, in which what a judge sees is kept until `out` has its metrics."""
    kept = out / ".partial" / hashlib.sha256(json.dumps(identity(judge)).encode()).hexdigest()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    return kept


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


def _by_tag(cases: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`summarise` of the cases of each tag, where there are any."""
    tags = {case.case_id: case.tags or () for case in cases}
    every = sorted({tag for own in tags.values() for tag in own})
    found = {tag: summarise([row for row in rows if tag in tags[row["case_id"]]]) for tag in every}
    return {"by_tag": found} if found else {}


def _gap(cases: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`metrics.gap` of people who are in a group, each over all their pictures; where there is one."""
    groups = {
        person: group for case in cases for person, group in zip(case.people or (), case.groups or (), strict=False)
    }
    drawn: dict[str, list[float]] = defaultdict(list)
    real: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["n_faces"] is None:
            continue
        cosines = assigned_cosines(np.array(row["cosines"]), np.array(row["assignment"]))
        for k, person in enumerate(row["people"] or ()):
            if person in groups:
                drawn[person].append(float(np.nan_to_num(cosines[k])))
                if row["target_cosines"]:
                    real[person].append(row["target_cosines"][k] or 0.0)
    found = metrics.gap(
        {person: float(np.mean(own)) for person, own in drawn.items()},
        {person: float(np.mean(own)) for person, own in real.items()},
        groups,
    )
    return {"gap": found} if found else {}


def _strangers(cases: Sequence[Case], gallery: Gallery) -> dict[str, Any] | None:
    """`strangers` among the people of all cases, each by the references that come first, with their `warning`.

    People without an id are told apart by their photographs.
    """

    def shown(photos: Sequence[str]) -> frozenset[str]:
        return frozenset(map(gallery.digest, photos))

    ids = {shown(p): name for case in cases for p, name in zip(case.references, case.people or (), strict=False)}
    photos: dict[str | frozenset[str], tuple[str, ...]] = {}
    for case in cases:
        for k, own in enumerate(case.references):
            photos.setdefault(case.people[k] if case.people else ids.get(shown(own), shown(own)), own)
    people = list(photos.values())
    if len(people) > STRANGERS_AT_MOST:
        chosen = np.random.default_rng(0).choice(len(people), STRANGERS_AT_MOST, replace=False)
        people = [people[k] for k in sorted(chosen)]
    gallery.look(path for own in people for path in own)
    usable = [own for own in people if all(len(gallery[path].sides) for path in own)]
    found = strangers(reference_vectors(usable, gallery), gallery.judge.same_person_cosine) if usable else None
    return found and found | {"warning": warning(found)}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """An OSError inside becomes one line that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise WorkFailed(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}); "
            "make room or choose another --out, then run the same command again"
        ) from error
