"""Scoring results of a benchmark: strict, as `umo evaluate` scores cases, and as published, from the same look."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umo import records
from umo.errors import BadInput
from umo.evaluation.benchmarks.base import Benchmark, Item, Judged
from umo.evaluation.cases import Case, write_cases
from umo.evaluation.judges import Gallery, Spec, look_in_processes, refuse_shared
from umo.evaluation.scoring import evaluate, kept_in, writing
from umo.faces.base import FaceModel
from umo.files import write_text

CASES, PICTURES, INPUTS = "CASES.jsonl", "pictures", "references"


def score(
    benchmark: Benchmark,
    root: Path,
    results: Path,
    out: Path,
    spec: Spec,
    workers: int = 1,
    rewarded_by: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge drawn pictures; `out` is then as `umo evaluate` leaves it, with `CASES.jsonl` beside, and its metrics.json
    has the key `benchmark`.

    Args:
        root: the local copy of the benchmark.
        results: drawn pictures in the published layout.
        workers: processes that look at pictures.
        rewarded_by: face models that rewarded or curated; a judge with the network of one is refused.

    Raises:
        BadInput: the copy or the results are not in their layout, a picture of the copy is missing, or the judge is
            refused.
        WorkFailed: no case could be judged, or `out` cannot be written.
    """
    judge = spec.load()
    refuse_shared(judge, rewarded_by)
    with writing(out):
        items = present(benchmark, root, out / INPUTS)
        pictures = benchmark.drawn(items, results, out / PICTURES)
        gallery = Gallery(judge, out, kept=kept_in(out, judge))
    named = [(item, [_from(out, path) for path in paths]) for item, paths in zip(items, pictures, strict=True)]
    with writing(out):
        _look(gallery, named, spec, workers)
    judged, cases, skipped = [], [], Counter[str]()
    for item, paths in named:
        people = _people(item, gallery)
        references = [_from(out, item.inputs[k]) for k in people]
        target = None if item.target is None else _from(out, item.target)
        judged.append(
            Judged(
                item,
                tuple(gallery[path] for path in references),
                tuple(gallery[path] for path in paths if references),
                None if target is None else gallery[target],
            )
        )
        if references:
            photos = tuple((path,) for path in references)
            # Cases that show a person from the same photograph are not independent.
            names = tuple(_from(root, item.inputs[k]) for k in people)
            known = names if len(set(names)) == len(names) else None
            cases.append(Case(item.key, item.prompt, photos, tuple(paths), target, known, item.places, (item.subset,)))
        else:
            skipped["nobody is asked for" if item.people is not None else "no face in any input"] += 1
    with writing(out):
        write_cases(out / CASES, cases)
    result = evaluate(out / CASES, out, judge, gallery.seen)
    rows = records.read(out / "scores.parquet", records.SCORES)
    if unjudged := rows["n_faces"].null_count:
        skipped["pictures whose references cannot be used"] = unjudged
    result["benchmark"] = {
        "name": benchmark.name,
        "revision": benchmark.revision,
        "licence": benchmark.licence,
        "items": len(items),
        "missing": sum(not path.is_file() for paths in pictures for path in paths),
        "skipped": dict(skipped),
        "published": benchmark.published(judged, results),
        "published_judge": benchmark.judge,
        "comparable": comparable(benchmark, judge),
    }
    with writing(out):
        write_text(out / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def present(benchmark: Benchmark, root: Path, work: Path) -> list[Item]:
    """The benchmark's items; BadInput where a picture that they name is missing."""
    items = benchmark.items(root, work)
    if missing := benchmark.missing(items):
        raise BadInput(
            f"{root}: {len(missing)} pictures are missing, the first {missing[0]}; umo benchmark check "
            f"{benchmark.name} names all"
        )
    return items


def comparable(benchmark: Benchmark, judge: FaceModel) -> str | None:
    """Why a number cannot be held beside the published tables; None where the embedder is theirs."""
    if judge.embedder.name in benchmark.embedders:
        return None
    return f"published tables are by {benchmark.judge}; these numbers are by {judge.name}"


def _look(gallery: Gallery, named: Sequence[tuple[Item, Sequence[str]]], spec: Spec, workers: int) -> None:
    """At every picture that counts, once."""
    paths = []
    for item, pictures in named:
        inputs = item.inputs if item.people is None else [item.inputs[k] for k in item.people]
        if inputs:
            paths += [_from(gallery.root, path) for path in (*inputs, item.target) if path] + list(pictures)
    look_in_processes(spec, workers, gallery, paths)
    gallery.look(paths)


def _people(item: Item, gallery: Gallery) -> Sequence[int]:
    """Positions of the inputs that show somebody to be drawn."""
    if item.people is not None:
        return item.people
    return [k for k, path in enumerate(item.inputs) if len(gallery[_from(gallery.root, path)].sides)]


def _from(out: Path, path: Path) -> str:
    return os.path.relpath(path.resolve(), out.resolve())
