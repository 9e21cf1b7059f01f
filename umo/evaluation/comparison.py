"""Is one evaluation better than another? Two folders of `scores.parquet` and `metrics.json` in, a verdict a metric out.

It needs no face model: whatever it compares was scored before.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umo import records
from umo.errors import BadInput
from umo.evaluation import metrics
from umo.texts import read_json

Row = Mapping[str, Any]
LEVEL = 0.05  # a verdict holds below it; the share of 95 % intervals that miss


def compare(dir_a: Path, dir_b: Path) -> dict[str, Any]:
    """Is A better than B? Differences a - b, paired by case and seed, averaged over the pictures of a case.

    Returns:
        Per metric {"difference", "low", "high", "n", "verdict", "p", "p_holm", "holds"}, with the verdict `better`,
        `worse` (the 95 % interval excludes 0; of `metrics.LOWER_IS_BETTER` less is better) or `cannot tell` (also of
        `metrics.NEUTRAL`), and `p_holm` and `holds` by `correct` over all metrics; beside them `judge`, `cases`,
        `pairs` and `unpaired` ({"a", "b"}: pictures of one folder only).

    Raises:
        BadInput: a folder holds no evaluation, the judges differ, or no case is common.
    """
    judges = [_read_judge(folder) for folder in (dir_a, dir_b)]
    if judges[0] != judges[1]:
        raise BadInput(f"{dir_a} and {dir_b} were judged differently ({_names(judges)}); evaluate both with one judge")
    rows_a, rows_b = _read_scores(dir_a), _read_scores(dir_b)
    pairs = _paired(rows_a, rows_b)
    if not pairs:
        raise BadInput(f"{dir_a} and {dir_b} have no case and seed in common; evaluate the same cases")
    for a, b in pairs:
        if a["n"] != b["n"]:
            raise BadInput(
                f"case {a['case_id']} has different references in {dir_a} and {dir_b}; evaluate the same cases"
            )
    found = compare_rows([_as_metrics(row) for row in rows_a], [_as_metrics(row) for row in rows_b], metrics.METRICS)
    return found | {
        "judge": judges[0]["name"],
        "cases": len({a["case_id"] for a, _ in pairs}),
        "pairs": len(pairs),
        "unpaired": {"a": len(rows_a) - len(pairs), "b": len(rows_b) - len(pairs)},
    }


def compare_rows(rows_a: Sequence[Row], rows_b: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Differences a - b of any values of pictures, paired by case and seed, averaged over the pictures of a case.

    Args:
        rows_a, rows_b: a row a picture, with case_id, seed, people and every one of `names`; a value may be None.

    Returns:
        As `compare`, of every name.
    """
    pairs = _paired(rows_a, rows_b)
    common = [a for a, _ in pairs]
    found = {
        name: _verdict(
            name, *metrics.tested(*metrics.by_case(common, [_difference(a[name], b[name]) for a, b in pairs]))
        )
        for name in names
    }
    correct(list(found.values()))
    return found


def correct(found: Sequence[dict[str, Any]]) -> None:
    """Correct comparisons for their number: each gets `p_holm` (`metrics.holm` over those with a p) and `holds`.

    A verdict holds where it is not `cannot tell` and p_holm is below 5 %.
    """
    corrected = iter(metrics.holm([one["p"] for one in found if one["p"] is not None]))
    for one in found:
        one["p_holm"] = None if one["p"] is None else next(corrected)
        one["holds"] = one["verdict"] != "cannot tell" and one["p_holm"] < LEVEL


def _paired(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of one case and seed."""
    of_b = {(row["case_id"], row["seed"]): row for row in rows_b}
    return [(row, of_b[key]) for row in rows_a if (key := (row["case_id"], row["seed"])) in of_b]


def _as_metrics(row: Row) -> dict[str, Any]:
    """A row of `records.SCORES` as its `METRICS`."""
    values = {name: metrics.of_row(row, name) for name in metrics.METRICS}
    return {key: row[key] for key in ("case_id", "seed", "people")} | values


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _verdict(name: str, found: metrics.Estimate, p: float | None) -> dict[str, Any]:
    verdict = "cannot tell"
    low, high = (None, None) if name in metrics.NEUTRAL else (found.low, found.high)
    if low is not None and high is not None and (low > 0 or high < 0):
        verdict = "better" if (low > 0) != (name in metrics.LOWER_IS_BETTER) else "worse"
    return {"difference": found.mean, "low": found.low, "high": found.high, "n": found.n, "verdict": verdict, "p": p}


def _read_judge(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        return dict(read_json(path)["judge"])
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror}); run umo evaluate CASES.jsonl --out {folder}"
        ) from error
    except (BadInput, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is not the result of an evaluation; run umo evaluate again") from error


def _names(judges: Sequence[Mapping[str, Any]]) -> str:
    """Two judges' names, or of the same judge what else differs."""
    a, b = judges
    if a["name"] != b["name"]:
        return f"{a['name']}, {b['name']}"
    return f"{a['name']} with other {' and '.join(sorted(key for key in a if a[key] != b.get(key)))}"


def _read_scores(folder: Path) -> list[dict[str, Any]]:
    return records.read(folder / "scores.parquet", records.SCORES).to_pylist()
