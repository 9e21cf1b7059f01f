"""WebDataset: tars in a folder for each number of people.

Readers take the members of the first samples for those of all: were sets of two and of three people in one tar, the
third reference would be dropped without a word. So every sample of a folder has the same members: `txt` (the prompt),
`json` (what is no picture), `target.png` or `target.jpg`, `ref_0.jpg`, `ref_1.jpg`, ... in the order of the people.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pipelines.core.ledger import SPLITS
from umo.images import encode_png, read_image

FOLDER = "webdataset"
JSON_COLUMNS = (
    *("set_id", "n", "prompt", "background", "person_ids", "target_boxes", "target_landmarks", "reference_landmarks"),
    *("reference_cosine", "reference_recall", "split", "source", "sources", "licence", "consent"),
)


class Writer:
    """Writes a part of a split as FOLDER/webdataset/nN/NAME.tar, a tar for each number of people that occurs.

    Args:
        suffixes: number of people -> suffix of the targets' member; where it is `.png`, a JPEG is stored as PNG with
            the same pixels.
    """

    def __init__(self, folder: Path, name: str, suffixes: Mapping[int, str]) -> None:
        self._folder = folder / FOLDER
        self._name = name
        self._suffixes = suffixes
        self._tars: dict[int, tarfile.TarFile] = {}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for tar in self._tars.values():
            tar.close()

    def write(self, sets: Sequence[dict]) -> None:
        """Samples, in order."""
        for row in sets:
            tar = self._tar(row["n"])
            for member, data in self._members(row).items():
                # USTAR and the defaults of TarInfo: no owner, no date.
                entry = tarfile.TarInfo(f"{row['set_id']}.{member}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))

    def _tar(self, n: int) -> tarfile.TarFile:
        if n not in self._tars:
            folder = self._folder / f"n{n}"
            folder.mkdir(parents=True)
            self._tars[n] = tarfile.open(folder / f"{self._name}.tar", "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        return self._tars[n]

    def _members(self, row: dict) -> dict[str, bytes]:
        # Readers fix a column's type by the first samples, and null has none.
        text = {name: "" if row[name] is None else row[name] for name in JSON_COLUMNS}
        suffix = self._suffixes[row["n"]]
        target = row["target"]["bytes"]
        if Path(row["target"]["path"]).suffix != suffix:
            target = encode_png(read_image(target))
        references = {f"ref_{k}.jpg": image["bytes"] for k, image in enumerate(row["references"])}
        return {
            "json": json.dumps(text, sort_keys=True).encode(),
            f"target{suffix}": target,
            "txt": (row["prompt"] or "").encode(),
            **references,
        }


def target_suffixes(targets: Mapping[int, set[str]]) -> dict[int, str]:
    """The suffix of all targets with the same number of people.

    Args:
        targets: number of people -> the suffixes that occur.
    """
    return {n: ".jpg" if suffixes == {".jpg"} else ".png" for n, suffixes in targets.items()}


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
`ref_0.jpg`, `ref_1.jpg`, ... in the order of the people from left to right. The spare references are in the Parquet
files alone. Licences, consent and what else holds for the data set: ../README.md.

```python
from datasets import load_dataset

sets = load_dataset("path/to/webdataset", "n{first}", split="{SPLITS[0]}")
```
"""
