"""The data-set card, written from the figures."""

from collections import Counter
from collections.abc import Mapping

import polars as pl

from pipelines.ledger import SPLITS
from pipelines.sources import Source


def data_set_card(sets: pl.DataFrame, funnel: Mapping, sources: Mapping[str, Source]) -> str:
    """README.md of an exported data set: front matter that `datasets` reads, then what a user should know.

    Args:
        sets: the kept rows of records.SETS.
        funnel: as curate writes it.
        sources: those of datasets/sources.yaml that have photographs in the sets.
    """
    present = [split for split in SPLITS if split in set(sets["split"])]
    files = "\n".join(f"      - split: {split}\n        path: {split}-*.parquet" for split in present)
    return f"""---
pretty_name: Multi-identity reference sets
task_categories: [text-to-image, image-to-image]
configs:
  - config_name: default
    data_files:
{files}
---
# Multi-identity reference sets

{sets.height} training examples for image customization with several people: a target picture, a reference photograph
of each person in it **from another picture**, further photographs of each person, and a prompt. Made by `dvc repro` of
[umo](https://arxiv.org/abs/2509.06818)'s data engine.

```python
from datasets import load_dataset

sets = load_dataset("path/to/this/folder", split="train")
sets[0]["target"], sets[0]["references"], sets[0]["pool"], sets[0]["prompt"]
```

## What is in it
{_counts(sets)}

People of one split are in no other. References stand in the order of the people from left to right in the target.

| column | what it is |
|---|---|
| `target`, `target_boxes`, `target_landmarks` | the picture; a box and five points a person, in its pixels |
| `references`, `reference_landmarks` | a square crop around each person's face, and five points in its pixels |
| `pool`, `pool_landmarks` | further photographs of each person, never the one that the target was made from |
| `reference_cosine` | similarity of reference and target face, by the network that curated |
| `prompt`, `background` | text from the measured layout; no names |
| `person_ids`, `set_id`, `split` | pseudonyms |
| `source`, `licence`, `consent` | where the target comes from and on what terms |

## How pictures became sets
{funnel["pictures"]} pictures were considered and {funnel["kept"]} kept.

| turned away because of | pictures |
|---|---|
{_reasons(funnel)}

Reference to target cosine: {_range(sets)}.

## Sources, licences, consent
{_sources(sources)}

Sets by licence and consent of their target:

{_licences(sets)}

## Faces are personal data
The pictures show real people. Use them for the purpose their licence states; do not identify anyone, do not train
recognition on them, and delete a person's rows when asked.
{_notes(sources)}"""


def _counts(sets: pl.DataFrame) -> str:
    numbers = sorted(set(sets["n"]))
    lines = [
        f"| split | people | sets | {' | '.join(f'n = {n}' for n in numbers)} |",
        f"|---|---|---|{'---|' * len(numbers)}",
    ]
    for split in SPLITS:
        part = sets.filter(pl.col("split") == split)
        people = part["person_ids"].explode().n_unique() if part.height else 0
        by_n = Counter(part["n"])
        lines.append(f"| {split} | {people} | {part.height} | {' | '.join(str(by_n[n]) for n in numbers)} |")
    return "\n".join(lines)


def _reasons(funnel: Mapping) -> str:
    return "\n".join(f"| {reason} | {count} |" for reason, count in funnel["reasons"].items()) or "| nothing | 0 |"


def _range(sets: pl.DataFrame) -> str:
    cosine = sets["reference_cosine"].explode().drop_nulls()
    if not len(cosine):
        return "no sets"
    low, middle, high = (cosine.quantile(q) for q in (0.05, 0.5, 0.95))
    return f"median {middle:.2f}, 5 to 95 % from {low:.2f} to {high:.2f}"


def _sources(sources: Mapping[str, Source]) -> str:
    lines = ["| source | licence | consent | credit |", "|---|---|---|---|"]
    for name, source in sorted(sources.items()):
        lines.append(f"| {name} | {source.licence or 'none stated'} | {source.consent} | {source.credit or ''} |")
    return "\n".join(lines)


def _notes(sources: Mapping[str, Source]) -> str:
    """What the sources say of whom they show, and of whom not."""
    return "".join(f"\n**{name}**: {source.note}\n" for name, source in sorted(sources.items()) if source.note)


def _licences(sets: pl.DataFrame) -> str:
    groups = sets.group_by("licence", "consent").len().sort("licence", "consent")
    lines = ["| licence | consent | sets |", "|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {licence} | {consent} | {count} |" for licence, consent, count in groups.iter_rows())]
    )
