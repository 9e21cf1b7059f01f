"""WebDataset: tars in a folder for each number of people.

Readers take the members of the first samples for those of all: were sets of two and of three people in one tar, the
third reference would be dropped without a word. So every sample of a folder has the same members: `txt` (the prompt),
`json` (what is no picture), `target.png` or `target.jpg`, `ref_0.jpg`, `ref_1.jpg`, ... in the order of the people.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.core.ledger import SPLITS
from umo.images import encode_png, read_image

FOLDER = "webdataset"
JSON_COLUMNS = (
    *("set_id", "n", "prompt", "background", "person_ids", "target_boxes", "target_landmarks", "reference_landmarks"),
    *("reference_cosine", "cross_cosine", "reference_recall", "split", "source", "sources", "licence", "consent"),
)


@contextmanager
def writing(folder: Path, name: str, suffixes: Mapping[int, str]) -> Iterator[Callable[[Sequence[dict]], None]]:
    """A part of a split as FOLDER/webdataset/nN/NAME.tar, a tar for each number of people; yields what writes sets.

    Args:
        suffixes: number of people -> suffix of the targets' member; where it is `.png`, a JPEG is stored as PNG with
            the same pixels.
    """
    tars: dict[int, tarfile.TarFile] = {}

    def write(sets: Sequence[dict]) -> None:
        for row in sets:
            n = row["n"]
            if n not in tars:
                path = folder / FOLDER / f"n{n}" / f"{name}.tar"
                path.parent.mkdir(parents=True)
                tars[n] = stack.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))  # noqa: SIM115
            for member, data in _members(row, suffixes[n]).items():
                # USTAR and the defaults of TarInfo: no owner, no date.
                entry = tarfile.TarInfo(f"{row['set_id']}.{member}")
                entry.size = len(data)
                tars[n].addfile(entry, io.BytesIO(data))

    with ExitStack() as stack:
        yield write


def _members(row: dict, suffix: str) -> dict[str, bytes]:
    # Readers fix a column's type by the first samples, and null has none.
    text = {name: "" if row[name] is None else row[name] for name in JSON_COLUMNS}
    target = row["target"]["bytes"]
    if Path(row["target"]["path"]).suffix != suffix:
        target = encode_png(read_image(target))
    return {
        "json": json.dumps(text, sort_keys=True).encode(),
        f"target{suffix}": target,
        "txt": (row["prompt"] or "").encode(),
        **{f"ref_{k}.jpg": image["bytes"] for k, image in enumerate(row["references"])},
    }


def card(files: Iterable[str], contents: str) -> str:
    """README.md of the folder: its front matter names a configuration for each number of people.

    Args:
        files: names in the data set; those of tars count.
        contents: digest of the data, for what `datasets` keeps must not outlive it.
    """
    tars: dict[int, list[str]] = {}
    for path in map(Path, files):
        if path.suffix == ".tar":
            tars.setdefault(int(path.parent.name[1:]), []).append(path.name)
    configs = []
    for n, names in sorted(tars.items()):
        present = [split for split in SPLITS if any(name.startswith(f"{split}-") for name in names)]
        files = "".join(f"      - split: {split}\n        path: n{n}/{split}-*.tar\n" for split in present)
        configs.append(f"  - config_name: n{n}\n    description: contents {contents}\n    data_files:\n{files}")
    first = min(tars)
    return f"""---
configs:
{"".join(configs)}---
# Multi-identity reference sets as WebDataset

A configuration for each number of people; a sample's members are `txt` (the prompt), `json`, the target, and
`ref_0.jpg`, `ref_1.jpg`, ... in the order of the people. The spare references are in the Parquet
files alone. Licences, consent and what else holds for the data set: ../README.md.

```python
from datasets import load_dataset

sets = load_dataset("path/to/webdataset", "n{first}", split="{SPLITS[0]}")
```
"""
