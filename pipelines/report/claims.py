"""What the ladder shows and does not show, in sentences that its numbers decide."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipelines.report.cells import ABSENT_DOUBLED, QUESTIONS, Made
from umo.evaluation import seeds

PAPER = ("base", "sft", "sir", "mimr")  # the order of arXiv 2509.06818, table 3: each above the one before it
WORDS = {
    ABSENT_DOUBLED: "people absent or doubled",
    "copy_paste": "copy-paste",
    "coverage": "people covered",
    "id_sim_strict": "likeness",
    "id_conf_strict": "no confusion",
    "doubled": "pictures with somebody twice",
}
NEAR = 0.03  # of likeness: what sft may differ from base, and what a guarded training may lose
LESS = 0.01  # of likeness: what ours may be below mimr


def sentences(made: Mapping[str, Made], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """On the cells of a group and the answers of `cells.differences`."""
    said = [_of_difference(one) for one in found]
    asked = {(one["a"], one["b"], one["metric"]) for one in found}
    for one in QUESTIONS:
        if (one.a, one.b, one.metric) not in asked:
            said.append(f"**Not measured**: `{one.a}` against `{one.b}`, {WORDS[one.metric]}: a cell is missing.")
    said += [*_margins(made), *_order(made), *over_optimised(made)]
    return said


def _of_difference(one: Mapping[str, Any]) -> str:
    what = f"`{one['a']}` against `{one['b']}`, {WORDS[one['metric']]}" + ", open prompts" * (one["kind"] == "open")
    if one["holds"]:
        return f"**Shown**: {what}: {one['verdict']}, {_interval(one)}."
    if one["verdict"] != "cannot tell":
        return f"**Not shown**: {what}: {one['verdict']}, {_interval(one)}, but not after Holm's correction."
    return f"**Not shown**: {what}: no difference that could be told from chance, {_interval(one)}."


def _margins(made: Mapping[str, Made]) -> Iterator[str]:
    """Where a difference shall be small."""
    for a, b, low, high in (("ours", "mimr", -LESS, None), ("sft", "base", -NEAR, NEAR)):
        if a not in made or b not in made:
            yield f"**Not measured**: `{a}` against `{b}`: a cell is missing."
            continue
        found, _ = seeds.difference(made[a].of(), made[b].of(), "id_sim_strict")
        if found.low is None or found.high is None:
            yield f"**Not measured**: `{a}` against `{b}`: too few people for an interval."
            continue
        bound = f"within {NEAR} of" if high else f"not below, by more than {LESS},"
        inside = found.low >= low and (high is None or found.high <= high)
        outside = found.high < low or (high is not None and found.low > high)
        state = "**Shown**" if inside else "**Shown to be false**" if outside else "**Not shown**"
        numbers = {"difference": found.mean, "low": found.low, "high": found.high}
        yield f"{state}: the likeness of `{a}` is {bound} that of `{b}`: {_interval(numbers)}."


def _order(made: Mapping[str, Made]) -> Iterator[str]:
    """The paper's order, step by step."""
    for metric in ("id_sim_strict", "id_conf_strict"):
        steps = []
        for below, above in pairwise(PAPER):
            if below not in made or above not in made:
                steps.append(f"{below} ? {above}")
                continue
            found, _ = seeds.difference(made[above].of(), made[below].of(), metric)
            certain = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
            sign = "?" if found.mean is None else ("<" if found.mean > 0 else ">") if certain else "≈"
            steps.append(f"{below} {sign} {above}")
        yield (
            f"**The paper's order**, base < sft < sir < mimr, by {WORDS[metric]}: {', '.join(steps)} "
            "(≈: the interval of the difference holds 0; ?: not measured)."
        )


def over_optimised(made: Mapping[str, Made]) -> Iterator[str]:
    """What is left at the end of a long training of the best in its course."""
    for name, cell in made.items():
        if "-long" not in name:
            continue
        course = [point["id_sim_strict"] for point in cell.first["points"]]
        lost = max(course) - course[-1]
        state = "keeps" if lost <= NEAR else "loses"
        yield (
            f"**Four times as long**: `{name}` {state} what it had: likeness {course[-1]:.3f} at the end, "
            f"{max(course):.3f} at best."
        )


def _interval(one: Mapping[str, Any]) -> str:
    mean, low, high = (f"{one[key]:+.3f}".replace("-", "−") for key in ("difference", "low", "high"))
    return f"{mean} [{low}, {high}]"
