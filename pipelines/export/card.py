"""The data-set card, written from the figures."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from pipelines.core.ledger import SPLITS
from pipelines.core.sources import Source
from pipelines.export.formats.croissant import data_biases

BAR = 40  # characters of the longest bar
FORMS = {
    "parquet": '`*.parquet`: the canonical form; `load_dataset("path/to/this/folder")`',
    "webdataset": (
        "`webdataset/nN/*.tar`: WebDataset, a folder for each number of people N, without the pool; "
        '`load_dataset("path/to/this/folder/webdataset", "n2")`, or the `webdataset` package'
    ),
    "uno": "`uno/SPLIT.json`: UNO's training JSON with its pictures beside it, without the pool",
    "croissant": '`croissant.json`: for mlcroissant: `Dataset("croissant.json").records("sets")`, without the pool',
}


def data_set_card(
    sets: pl.DataFrame, funnel: Mapping, sources: Mapping[str, Source], formats: Sequence[str], contents: str
) -> str:
    """README.md of an exported data set: front matter that `datasets` reads, then what a user should know.

    Args:
        sets: the kept rows of records.SETS, with `sources`.
        funnel: as curate writes it.
        sources: those of datasets/sources.yaml that have photographs in the sets.
        formats: that are in the folder.
        contents: digest of the data. `datasets` keeps what it has read of a folder under the folder's name and its
            configuration alone; without it, a new export (without somebody who was forgotten) would be read from there.
    """
    present = [split for split in SPLITS if split in set(sets["split"])]
    low, middle, high = (sets["reference_cosine"].explode().drop_nulls().quantile(q) for q in (0.05, 0.5, 0.95))
    licences = sets.group_by("licence", "consent").len().sort("licence", "consent").iter_rows()
    files = "\n".join(f"      - split: {split}\n        path: {split}-*.parquet" for split in present)
    forms = "\n".join(f"- {FORMS[name]}" for name in FORMS if name in formats)
    biases = "\n".join(f"- {line}" for line in data_biases(sources))
    return f"""---
pretty_name: Multi-identity reference sets
license: other
task_categories: [text-to-image, image-to-image]
configs:
  - config_name: default
    description: contents {contents}
    data_files:
{files}
---
# Multi-identity reference sets

{sets.height} training examples for image customization with several people: a target picture, a reference photograph
of each person in it **from another picture**, further photographs of each person, and a prompt. Made by `dvc repro` of
[umo](https://arxiv.org/abs/2509.06818)'s data engine.

```python
from datasets import load_dataset

sets = load_dataset("path/to/this/folder", split="{present[0]}")
sets[0]["target"], sets[0]["references"], sets[0]["pool"], sets[0]["prompt"]
```

## What is in it
{_counts(sets)}

People of one split are in no other. References stand in the order of the people from left to right in the target; where
the prompt leaves open who stands where, in another.

{forms}
- `contact_sheet_*.jpg`: the first sets of each split, the target in the last column
- `SHA256SUMS`: of every file; check with `sha256sum -c SHA256SUMS`

| column | what it is |
|---|---|
| `target`, `target_boxes`, `target_landmarks` | the picture; a box and five points a person, in its pixels |
| `references`, `reference_landmarks` | a square crop around each person's face, and five points in its pixels |
| `pool`, `pool_landmarks` | further photographs of each person, never the one that the target was made from |
| `reference_cosine` | similarity of reference and target face, by the network that curated |
| `cross_cosine` | the highest similarity of two faces in the target; null for one person |
| `reference_recall`, `pool_recall` | `group`: from the target's own album or video; `corpus`: from another one |
| `prompt`, `background` | text from the measured layout; no names |
| `person_ids`, `set_id`, `split` | pseudonyms |
| `source` | where the target comes from |
| `sources` | of the target, the photographs that it was made from, and the references |
| `licence`, `consent` | every licence, and the weakest consent, of all of these |

## How pictures became sets
{funnel["pictures"]} pictures were considered and {funnel["kept"]} kept.

{_table(("turned away because of", "pictures"), funnel["reasons"].items() or [("nothing", 0)])}

Reference to target cosine: median {middle:.2f}, 5 to 95 % from {low:.2f} to {high:.2f}.

{_histograms(sets)}

## Sources, licences, consent
{_sources(sources, sets)}

Sets by licence and consent:

{_table(("licence", "consent", "sets"), licences)}

## Faces are personal data
The pictures show real people. Use them for the purpose their licence states; do not identify anyone, do not train
recognition on them, and delete a person's rows when asked.

## Whom it shows, and whom not
{biases}
"""


def _table(names: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    heading, *lines = (f"| {' | '.join(map(_cell, row))} |" for row in (names, *rows))
    return "\n".join([heading, "|---" * len(names) + "|", *lines])


def _cell(value: object) -> str:
    """What somebody wrote of a source must neither end its cell nor be taken for HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _counts(sets: pl.DataFrame) -> str:
    numbers = sorted(set(sets["n"]))
    rows = []
    for split in SPLITS:
        part = sets.filter(pl.col("split") == split)
        people = part["person_ids"].explode().n_unique() if part.height else 0
        by_n = Counter(part["n"])
        rows.append((split, people, part.height, *(by_n[n] for n in numbers)))
    return _table(("split", "people", "sets", *(f"n = {n}" for n in numbers)), rows)


def _histograms(sets: pl.DataFrame) -> str:
    boxes = sets["target_boxes"].explode().arr
    sides = pl.DataFrame({"w": boxes.get(2) - boxes.get(0), "h": boxes.get(3) - boxes.get(1)}).max_horizontal()
    shown = sets["person_ids"].explode().value_counts()["count"]
    drawn = [
        ("reference to target cosine", sets["reference_cosine"].explode(), 0.05, ".2f"),
        ("highest cosine between two people of a set", sets["cross_cosine"], 0.05, ".2f"),
        ("side of a face in the target (pixels)", sides, 16, ".0f"),
        ("sets that show a person", shown, 10, ".0f"),
    ]
    texts = [
        f"{title}\n{histogram(values.drop_nulls().to_numpy(), width, form)}" for title, values, width, form in drawn
    ]
    return "```\n" + "\n\n".join(texts) + "\n```"


def histogram(values: np.ndarray, width: float, form: str) -> str:
    """A text histogram: a line a bin, with its lower bound, a bar, and its count.

    Args:
        values: finite numbers; a bin holds those from its lower bound up to the next one's.
        width: of a bin.
        form: format of the lower bounds.
    """
    if not len(values):
        return "(none)"
    # Cosines are f32: 0.65 must not fall below its bin for the last bit's sake.
    bins = np.floor(np.asarray(values, np.float64) / width + 1e-6).astype(int)
    first = int(bins.min())
    counts = np.bincount(bins - first)
    longest = int(counts.max())
    return "\n".join(
        f"{(first + k) * width:>7{form}} {'#' * round(BAR * int(count) / longest):<{BAR}} {count}"
        for k, count in enumerate(counts)
    )


def _sources(sources: Mapping[str, Source], sets: pl.DataFrame) -> str:
    rows: list[tuple[str, ...]] = [
        (name, source.licence or "none stated", source.consent, source.credit or "")
        for name, source in sorted(sources.items())
    ]
    for name in sorted(set(sets["sources"].explode()) - set(sources)):
        rows.append((name, "of what it was made from", "of whom it shows", "made by this data engine"))
    return _table(("source", "licence", "consent", "credit"), rows)
