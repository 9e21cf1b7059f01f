"""The report's cases: each method's pictures and scores, as pages show them."""

from collections.abc import Sequence

from pipelines.core import products
from umo import records
from umo.evaluation.cases import Case
from umo.reporting import panels
from umo.reporting.panels import Extremes, Rows, Shown

SHEET = ("target", "base", "sft", "mimr", "ours")


def read_scores(method: str) -> Rows:
    """records.SCORES of a method's pictures."""
    table = records.read(products.EVALUATED / method / products.SCORES_TABLE, records.SCORES)
    return panels.by_key(table.to_pylist())


def shown(method: str, rows: Rows) -> Shown:
    """A method's pictures, where the pipeline keeps them."""
    return Shown(method, rows, products.CASES, products.GENERATED / method)


def contact_sheet(cases: Sequence[Case], scores: dict[str, Rows], threshold: float, count: int) -> str:
    """Some cases of several people: references, then each method's picture with the first seed."""
    return panels.contact_sheet(cases, [shown(of, scores[of]) for of in SHEET if of in scores], threshold, count)


def extremes(cases: Sequence[Case], scores: dict[str, Rows], threshold: float) -> list[Extremes]:
    """Where the `chosen` method did best and worst, and where it gained and lost most."""
    if (found := chosen(list(scores))) is None:
        return []
    last, base = found
    against = shown(base, scores[base]) if base else None
    return panels.extremes(cases, shown(last, scores[last]), against, threshold)


def chosen(methods: Sequence[str]) -> tuple[str, str | None] | None:
    """The last method that was trained, and the base that it is held against; the base alone where none was trained."""
    drawn = [method for method in ("base", *products.TRAINED_METHODS) if method in methods]
    return (drawn[-1], "base" if drawn[0] == "base" != drawn[-1] else None) if drawn else None
