"""Several judges on the same pictures: each as `umo evaluate` alone, side by side, and how far they agree."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from umo import records
from umo.errors import BadInput
from umo.evaluation import metrics
from umo.evaluation.agreement import Agreement, measure
from umo.evaluation.cases import read_cases
from umo.evaluation.judges import Spec, agreement, look_in_processes, refuse_shared
from umo.evaluation.scoring import evaluate, writing
from umo.files import replacing, write_text
from umo.texts import fault

KEYS = ("case_id", "image", "seed", "n")
RANKED = "id_sim_strict"


def evaluate_by(
    cases_file: Path,
    out: Path,
    specs: Sequence[Spec],
    workers: int = 1,
    rewarded_by: Sequence[str] = (),
    models: Sequence[Agreement] = (),
) -> dict[str, Any]:
    """`scoring.evaluate` by each judge: the first one's files lie in `out`, the others' in `out/NAME`.

    With more than one, `out/judges.parquet` has every metric of every picture in a column a judge (METRIC@NAME), and
    `out/metrics.json` the keys `judges` and `agreement`.

    Args:
        workers: processes that look at the pictures.
        rewarded_by: face models that rewarded or curated; a judge with the network of one is refused.
        models: of whole pictures, which are no judges: `agreement.measure` by them becomes the key `agreement_models`.

    Returns:
        The content of `out/metrics.json`.

    Raises:
        BadInput: as `scoring.evaluate`, a judge is refused, or two have one name.
        WorkFailed: as `scoring.evaluate`.
    """
    judges = [spec.load() for spec in specs]
    for judge in judges:
        refuse_shared(judge, rewarded_by)
    names = [judge.name for judge in judges]
    for name in names:
        if bad := fault(name, name=True):
            raise BadInput(f"--judge: {bad}: rename its folder or its file")
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise BadInput(f"--judge: two judges are named {twice!r}: rename the folder or the file of one")
    with writing(out):
        (out / "agreement.parquet").unlink(missing_ok=True)  # of an earlier run
        found = measure(read_cases(cases_file), cases_file.parent, models, out) if models else []
    results, scores = {}, {}
    for spec, judge in zip(specs, judges, strict=True):
        folder = out if judge is judges[0] else out / judge.name
        results[judge.name] = evaluate(cases_file, folder, judge, look_first=partial(look_in_processes, spec, workers))
        scores[judge.name] = records.read(folder / "scores.parquet", records.SCORES).to_pylist()
    first = results[names[0]]
    if len(judges) > 1:
        others = {name: result for name, result in results.items() if name != names[0]}
        first |= {"judges": others, "agreement": list(agreement(scores, RANKED))}
        _write_columns(out / "judges.parquet", scores)
    if found:
        first["agreement_models"] = found
    if found or len(judges) > 1:
        write_text(out / "metrics.json", json.dumps(first, indent=2, allow_nan=False) + "\n")
    return first


def _write_columns(path: Path, scores: dict[str, list[dict[str, Any]]]) -> None:
    rows = next(iter(scores.values()))
    columns: dict[str, list[Any]] = {key: [row[key] for row in rows] for key in KEYS}
    for name, of_judge in scores.items():
        for metric in metrics.METRICS:
            columns[f"{metric}@{name}"] = [metrics.of_row(row, metric) for row in of_judge]
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
