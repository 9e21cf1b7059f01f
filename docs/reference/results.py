"""What was measured: docs/results/ladder.json and bench/results/*.json, as tables."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from docs.reference.markdown import code, table
from pipelines.core.shards import ROOT

LADDER = ROOT / "docs/results/ladder.json"
BENCHES = ROOT / "bench/results"
COLUMNS = ("id_sim_strict", "id_conf", "coverage", "copy_paste")


def page() -> str:
    """The page."""
    return "\n\n".join(["# Results", *_ladder(json.loads(LADDER.read_text())), *_benches()])


def _ladder(ladder: Mapping[str, Any]) -> Iterator[str]:
    judge = ladder["judge"]["name"]
    yield (
        f"## The ladder\n\n`{ladder['command']}` on two cores ({ladder['seconds'] / 60:.0f} minutes, not counting the "
        f"installation): means over {ladder['cases']} cases, with 95 % intervals, judged by `{judge}` "
        "(`docs/results/ladder.json`). What each column means: [judging](../concepts/judging.md)."
    )
    yield table(
        ("method", *map(code, COLUMNS)),
        ((code(row["method"]), *(_estimate(row[name]) for name in COLUMNS)) for row in ladder["rows"]),
    )


def _estimate(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    mean, low, high = (f"{found[key]:.2f}".replace("-", "−") for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def _benches() -> Iterator[str]:
    yield (
        "## Benches\n\nEach is a ratio measured in one run, or a time against a promised one "
        "(`bench/results/NAME.json` has the details and names the machine)."
    )
    rows = []
    for path in sorted(BENCHES.glob("*.json")):
        found = json.loads(path.read_text())
        bar = f"{'≤' if found.get('better') == 'lower' else '≥'}\u00a0{found['bar']:.3g}"
        rows.append(
            (code(path.stem), f"{found['value']:.3g}", bar, "yes" if found["holds"] else "**no**", _what(found))
        )
    yield table(("bench", "value", "bar", "holds", "what is divided, against what"), rows)


def _what(found: Mapping[str, Any]) -> str:
    return f"{found['unit']}; against: {found['against']} ({code(found['command'])})"
