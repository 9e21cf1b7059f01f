"""Sets beyond what one person, or one number of people, may make up of a split are turned away, in a drawn order."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from pipelines.curate.params import Params


def balanced(params: Params, sets: pl.DataFrame) -> pl.DataFrame:
    """The sets, with a reason for those over a cap: first people's, then, of what is left, that of numbers of people.

    Args:
        sets: set_id, split, n, person_ids, reason (null for a good set), and other columns.
    """
    good = sets.filter(pl.col("reason").is_null()).select("set_id", "split", "n", "person_ids")
    good = good.sort(pl.col("set_id").hash(params.seed), "set_id")
    within = pl.Series(within_cap(good["person_ids"].to_list(), params.max_sets_per_person), dtype=pl.Boolean)
    over_person = good.filter(~within).with_columns(over=pl.lit(f"a person in over {params.max_sets_per_person} sets"))
    good = good.filter(within)
    limit = {
        split: limit_of_n(dict(of_split.group_by("n").len().iter_rows()), params.max_share_of_n)
        for (split,), of_split in good.group_by("split")
    }
    most = pl.DataFrame({"split": list(limit), "most": list(limit.values())}, {"split": pl.String, "most": pl.Int64})
    over_n = (
        good.with_columns(rank=pl.int_range(pl.len()).over("split", "n"))
        .join(most, on="split")
        .filter(pl.col("rank") >= pl.col("most"))
        .with_columns(over=pl.lit(f"over {params.max_share_of_n:g} of its split with so many people"))
    )
    over = pl.concat([part.select("set_id", "over") for part in (over_person, over_n)])
    sets = sets.join(over, on="set_id", how="left", maintain_order="left")
    return sets.with_columns(reason=pl.coalesce("reason", "over")).drop("over")


def within_cap(people: Iterable[Sequence[str]], max_sets: int) -> list[bool]:
    """Whether each set, in this order, is let in: none of its people is in `max_sets` of those let in before."""
    shown: Counter[str] = Counter()
    found = []
    for names in people:
        within = all(shown[name] < max_sets for name in names)
        if within:
            shown.update(names)
        found.append(within)
    return found


def limit_of_n(counts: Mapping[int, int], max_share: float) -> int:
    """The most sets with one number of people such that none makes up more than `max_share` of what is left.

    The largest solution, of `counts`: number of people -> sets. With k different numbers no share can be under 1 / k:
    then all have equal shares.
    """
    share = max(max_share, 1 / len(counts))
    total, left = -1, sum(counts.values())
    while left != total:
        total = left
        limit = int(share * total + 1e-9)
        left = sum(min(count, limit) for count in counts.values())
    return limit
