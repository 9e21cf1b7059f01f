"""Score drawn pictures with a judge: cases in, `scores.parquet` and `metrics.json` out; and compare two such folders.

The judge is a face model that neither curated the training data nor rewarded the training. Every picture is embedded
once a run. Finished cases are kept in `DIR/.partial`, so that a killed run goes on where it stopped.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from umo import metrics, records
from umo.errors import BadInput, WorkFailed
from umo.faces.base import FaceModel
from umo.faces.weights import sha256
from umo.images import ImageError, read_image
from umo.matching import NONE, assign, cosine_matrix, match
from umo.rewards import mimr, sir

METRICS = (
    "id_sim",
    "id_conf",
    "id_sim_strict",
    "id_conf_strict",
    "coverage",
    "duplicates",
    "extra",
    "copy_paste",
)
CASES_AT_ONCE = 4
PICTURES_AT_ONCE = 16
NO_FACE = "no face found: choose a photograph with a visible face"
_REQUIRED = {"case_id", "prompt", "references", "images"}
_OPTIONAL = {"target", "people"}


@dataclass(frozen=True, slots=True)
class Case:
    """What was asked for and what was drawn; paths are as written, relative to the file of cases.

    Attributes:
        references: for each of n people, one or several photographs.
        images: drawn with seeds 0, 1, ...; each is scored.
        target: another real picture of these people.
        people: n ids, in the order of the references.
    """

    case_id: str
    prompt: str
    references: tuple[tuple[str, ...], ...]
    images: tuple[str, ...]
    target: str | None
    people: tuple[str, ...] | None

    @property
    def paths(self) -> list[str]:
        """Every picture of the case."""
        target = [self.target] if self.target else []
        return [photo for person in self.references for photo in person] + list(self.images) + target


def read_cases(path: Path) -> list[Case]:
    """Read CASES.jsonl whole; blank lines are passed over, null is as good as absent for `target` and `people`.

    Raises:
        BadInput: the file cannot be read or is empty, or a line is not a case; names the file, the line and the reason.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not text in UTF-8; give a file of one JSON object a line") from error
    cases: dict[str, Case] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            case = _parse_case(line)
            _require(case.case_id not in cases, f"case_id {case.case_id!r} is already taken by an earlier line")
        except ValueError as error:
            raise BadInput(f"{path}:{number}: {error}; correct the line, nothing was scored") from error
        cases[case.case_id] = case
    if not cases:
        raise BadInput(f"{path}: holds no case; give one JSON object a line")
    return list(cases.values())


def _parse_case(line: str) -> Case:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    _require(isinstance(row, dict), "not a JSON object")
    _require(row.keys() >= _REQUIRED, f"missing {sorted(_REQUIRED - row.keys())}")
    unknown = row.keys() - _REQUIRED - _OPTIONAL
    _require(not unknown, f"unknown {sorted(unknown)} (known: {sorted(_REQUIRED | _OPTIONAL)})")
    _require(_is_text(row["case_id"]), "case_id must be a text that is not empty")
    _require(isinstance(row["prompt"], str), "prompt must be a text")
    _require(_is_list(row["references"]), "references must be a list that is not empty")
    people = [[person] if isinstance(person, str) else person for person in row["references"]]
    for person in people:
        _require(_is_texts(person), "a reference must be a path or a list of paths, none empty")
    _require(_is_texts(row["images"]), "images must be a list of paths that is not empty")
    target, names = row.get("target"), row.get("people")
    _require(target is None or _is_text(target), "target must be a path")
    if names is not None:
        _require(_is_texts(names), "people must be a list of texts")
        _require(len(names) == len(people), f"{len(names)} people for {len(people)} references")
        _require(len(set(names)) == len(names), "people names a person twice")
    references = tuple(tuple(person) for person in people)
    return Case(
        row["case_id"], row["prompt"], references, tuple(row["images"]), target, tuple(names) if names else None
    )


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_text(part) for part in value)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a judge saw in one picture: N faces, their embeddings (N, d), or why the picture cannot be used."""

    boxes: np.ndarray
    sides: np.ndarray
    embeddings: np.ndarray
    error: str | None = None

    def main(self) -> np.ndarray:
        """(d,) embedding of the largest face, as OmniContext takes it from a reference.

        Raises:
            ImageError: the picture is unreadable or shows no face.
        """
        if self.error or not len(self.sides):
            raise ImageError(self.error or NO_FACE)
        return self.embeddings[int(self.sides.argmax())]


class Gallery:
    """Pictures as one judge sees them, each looked at once however often it is named."""

    def __init__(self, judge: FaceModel, root: Path) -> None:
        self.judge = judge
        self.root = root
        self._digests: dict[str, str] = {}
        self._seen: dict[str, Seen] = {}

    def digest(self, path: str) -> str:
        """sha256 of the picture's bytes; a name of its own where it cannot be read."""
        if path not in self._digests:
            try:
                self._digests[path] = hashlib.sha256((self.root / path).read_bytes()).hexdigest()
            except OSError:
                self._digests[path] = f"unreadable {path}"
        return self._digests[path]

    def look(self, paths: Iterable[str]) -> None:
        """Detect and embed those not seen before, a few pictures at a time."""
        new = {self.digest(path): path for path in paths if self.digest(path) not in self._seen}
        pending: dict[str, np.ndarray] = {}
        for digest, path in new.items():
            try:
                pending[digest] = read_image(self.root / path)
            except ImageError as error:
                self._seen[digest] = self._nothing(str(error))
            if len(pending) == PICTURES_AT_ONCE:
                self._embed(pending)
                pending = {}
        if pending:
            self._embed(pending)

    def _embed(self, pictures: Mapping[str, np.ndarray]) -> None:
        images = list(pictures.values())
        faces = self.judge.detect(images)
        parts = np.split(self.judge.embed(images, faces), np.cumsum([len(found) for found in faces])[:-1])
        for digest, found, part in zip(pictures, faces, parts, strict=True):
            boxes = np.array([face.box for face in found], dtype=np.float32).reshape(-1, 4)
            self._seen[digest] = Seen(boxes, np.array([face.side for face in found]), part)

    def _nothing(self, error: str) -> Seen:
        return Seen(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros((0, self.judge.dimension), np.float32), error)

    def __getitem__(self, path: str) -> Seen:
        self.look([path])
        return self._seen[self.digest(path)]


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


def score(cosines: np.ndarray, same_person_cosine: float) -> dict[str, Any]:
    """Every metric of one picture from its (n, N) cosines, named as in `records.SCORES`."""
    found = match(cosines, same_person_cosine)
    return {
        "n_faces": cosines.shape[1],
        "cosines": cosines.tolist(),
        "assignment": found.assignment.tolist(),
        "id_sim": metrics.id_sim(cosines),
        "id_conf": metrics.id_conf(cosines),
        "id_sim_strict": metrics.id_sim_strict(cosines, found.assignment),
        "id_conf_strict": metrics.id_conf_strict(cosines, found.assignment),
        "covered": found.covered,
        "missing": found.missing,
        "duplicated": found.duplicated,
        "extra": found.extra,
    }


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
        **score(cosines, faces.same_person_cosine),
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
        scores = score(cosine_matrix(vectors, seen.embeddings), gallery.judge.same_person_cosine)
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


def identity(judge: FaceModel) -> dict[str, Any]:
    """What makes two evaluations comparable: the judge's name, weight files, threshold and mean face; its licence."""
    mean = getattr(judge, "mean", None)
    return {
        "name": judge.name,
        "files": {path.name: sha256(path) for path in judge.files},
        "same_person_cosine": judge.same_person_cosine,
        "mean_face": None if mean is None else hashlib.sha256(np.ascontiguousarray(mean).tobytes()).hexdigest(),
        "licence": judge.licence,
    }


def evaluate(cases_file: Path, out: Path, judge: FaceModel) -> dict[str, Any]:
    """Score every case and write `out/scores.parquet`, then `out/metrics.json`.

    Returns:
        The content of metrics.json.

    Raises:
        BadInput: as `read_cases`, before any work.
        WorkFailed: no case could be judged, or `out` cannot be written.
    """
    cases = read_cases(cases_file)
    gallery, described = Gallery(judge, cases_file.parent), identity(judge)
    partial = out / ".partial"
    with _writing(out):
        partial.mkdir(parents=True, exist_ok=True)
        scored = list(_score_all(cases, gallery, partial, json.dumps(described)))
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
        _write_text(out / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        shutil.rmtree(partial, ignore_errors=True)
    return result


def _score_all(cases: Sequence[Case], gallery: Gallery, partial: Path, judge: str) -> Iterator[Scored]:
    """Score a few cases at a time, so that their pictures share batches; finished cases are read back."""
    with tqdm(total=len(cases), unit="case", desc="evaluate", disable=None) as progress:
        for start in range(0, len(cases), CASES_AT_ONCE):
            chunk = cases[start : start + CASES_AT_ONCE]
            files = [partial / f"{_key(case, gallery, judge)}.json" for case in chunk]
            kept = [_read_scored(file) for file in files]
            gallery.look(path for case, done in zip(chunk, kept, strict=True) if done is None for path in case.paths)
            for case, file, done in zip(chunk, files, kept, strict=True):
                scored = done or score_case(case, gallery)
                if done is None:
                    _write_text(file, json.dumps(asdict(scored)))
                progress.update()
                yield scored


def _read_scored(file: Path) -> Scored | None:
    try:
        return Scored(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # not done, or cut short by a power failure: score it again


def _key(case: Case, gallery: Gallery, judge: str) -> str:
    """Of everything that a case's scores depend on, but this code: its line, its pictures' bytes, the judge."""
    parts = [json.dumps(asdict(case)), judge, *(gallery.digest(path) for path in case.paths)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of scores -> each metric's mean and interval over cases; people, where any are given, are the clusters."""
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case_id"], []).append(row)
    people = _people([group[0] for group in by_case.values()])
    return {
        name: asdict(metrics.bootstrap([_mean(_metric(r, name) for r in g) for g in by_case.values()], people))
        for name in METRICS
    }


def _metric(row: Mapping[str, Any], name: str) -> float | None:
    """One metric of one row; id_conf is over cases of at least two people, as ID-Conf is reported."""
    if row["n_faces"] is None or (name == "id_conf" and row["n"] < 2):
        return None
    if name == "coverage":
        return row["covered"] / row["n"]
    return row["duplicated" if name == "duplicates" else name]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _people(cases: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """Who is in each case, or None where no case says; a case that does not say shares nobody."""
    if not any(case["people"] for case in cases):
        return None
    return [case["people"] or [f"\0{case['case_id']}"] for case in cases]


def compare(dir_a: Path, dir_b: Path) -> dict[str, Any]:
    """Is A better than B? Differences a - b, paired by case and seed, averaged over the pictures of a case.

    Returns:
        Per metric {"difference", "low", "high", "n", "verdict"}, with the verdict `better`, `worse` (the 95 % interval
        excludes 0; of duplicates, extra and copy_paste less is better) or `cannot tell`; beside them `judge`,
        `cases`, `pairs` and `unpaired` ({"a", "b"}: pictures of one folder only).

    Raises:
        BadInput: a folder holds no evaluation, the judges differ, or no case is common.
    """
    judges = [_read_judge(folder) for folder in (dir_a, dir_b)]
    if judges[0] != judges[1]:
        raise BadInput(f"{dir_a} and {dir_b} were judged differently ({_names(judges)}); evaluate both with one judge")
    rows_a, rows_b = _read_scores(dir_a), _read_scores(dir_b)
    common = [key for key in rows_a if key in rows_b]
    if not common:
        raise BadInput(f"{dir_a} and {dir_b} have no case and seed in common; evaluate the same cases")
    for key in common:
        if rows_a[key]["n"] != rows_b[key]["n"]:
            raise BadInput(f"case {key[0]} has different references in {dir_a} and {dir_b}; evaluate the same cases")
    by_case: dict[str, list[tuple[str, int]]] = {}
    for key in common:
        by_case.setdefault(key[0], []).append(key)
    people = _people([rows_a[keys[0]] for keys in by_case.values()])
    result: dict[str, Any] = {}
    for name in METRICS:
        pairs = [[(_metric(rows_a[k], name), _metric(rows_b[k], name)) for k in keys] for keys in by_case.values()]
        differences = [_mean(a - b for a, b in case if a is not None and b is not None) for case in pairs]
        result[name] = _verdict(name, metrics.bootstrap(differences, people))
    unpaired = {"a": len(rows_a) - len(common), "b": len(rows_b) - len(common)}
    return result | {"judge": judges[0]["name"], "cases": len(by_case), "pairs": len(common), "unpaired": unpaired}


def _verdict(name: str, found: metrics.Estimate) -> dict[str, Any]:
    verdict = "cannot tell"
    if found.low is not None and found.high is not None and (found.low > 0 or found.high < 0):
        verdict = "better" if (found.low > 0) != (name in metrics.LOWER_IS_BETTER) else "worse"
    return {"difference": found.mean, "low": found.low, "high": found.high, "n": found.n, "verdict": verdict}


def _read_judge(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["judge"])
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror}); run umo evaluate CASES.jsonl --out {folder}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is not the result of an evaluation; run umo evaluate again") from error


def _names(judges: Sequence[Mapping[str, Any]]) -> str:
    a, b = judges
    if a["name"] != b["name"]:
        return f"{a['name']}, {b['name']}"
    return f"{a['name']} with other {' and '.join(sorted(key for key in a if a[key] != b.get(key)))}"


def _read_scores(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (row["case_id"], row["seed"]): row
        for row in records.read(folder / "scores.parquet", records.SCORES).to_pylist()
    }


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


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
