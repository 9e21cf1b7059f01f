"""MultiHuman-Testbench (arXiv 2506.20879): 1,800 prompts for one to five people, each face used once."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from umo.errors import BadInput
from umo.evaluation.benchmarks.base import Benchmark, Item, Judged, Pooled, files_in, inside, none_strange, read_list
from umo.files import replacing
from umo.matching import assign, assigned_cosines, cosine_matrix

SIMPLE = 1500  # entries from here on are complex
RANKS = {"left": 0, "middle": 1, "center": 1, "centre": 1, "right": 2}
STANDS = re.compile(
    rf"\b({'|'.join(RANKS)})\b(?:(?!\b(?:{'|'.join(RANKS)})\b).)*?<\|image_(\d+)\|>", re.IGNORECASE | re.DOTALL
)
SIDECARS = (".json", ".jsonl", ".txt")


class MultiHuman(Benchmark):
    """Places are those that a simple entry's `omnigen_prompt` gives to its pictures."""

    name = "multihuman"
    title = "MultiHuman-Testbench"
    revision = "Qualcomm-AI-research/MultiHuman-Testbench @ff9f120"
    licence = "code BSD-3-Clear; data by a research licence of its own"
    judge = "antelopev2's glintr100 on unaligned crops in [0, 1] of facer's retinaface/mobilenet (score over .8)"
    embedders = ()
    size = (1024, 1024)
    layout = "data/multihuman_metadata.json, and the faces that it names"
    results = "one folder with {position}.png, counted from 0"

    def items(self, root: Path, work: Path) -> list[Item]:
        file = root / "data/multihuman_metadata.json"
        items = []
        for k, row in enumerate(read_list(file, ("people", "prompt"))):
            where = f"{file}: entry {k}"
            if not isinstance(row["people"], list) or not row["people"]:
                raise BadInput(f"{where}: no people; copy it again")
            inputs = tuple(inside(root, path, where) for path in row["people"])
            n, simple = len(inputs), k < SIMPLE
            places = _places(str(row.get("omnigen_prompt", "")), n) if simple and n in (2, 3) else None
            subset = f"{'simple' if simple else 'complex'}-{n}"
            items.append(Item(str(k), subset, str(row["prompt"]), inputs, tuple(range(n)), places=places))
        return items

    def drawn(self, items: Sequence[Item], results: Path, work: Path) -> list[tuple[Path, ...]]:
        names = {f"{item.key}.png" for item in items}
        strange = [path for path in files_in(results, SIDECARS) if path.name not in names]
        none_strange(strange, results, f"{self.results} to {len(items) - 1}")
        return [(results / f"{item.key}.png",) for item in items]

    def arrange(self, item: Item, pictures: Sequence[Path], results: Path) -> None:
        with replacing(results / f"{item.key}.png") as temporary:
            Image.open(pictures[0]).save(temporary, format="PNG")

    def published(self, judged: Sequence[Judged], results: Path) -> dict[str, Any]:
        """The share of pictures with the right number of faces, and the summed cosine of the assignment per person.

        Missing files leave the mean without a word. A reference without a face is judged there on the whole picture;
        here its item is passed over, and counted.
        """
        found: dict[str, Any] = {}
        for part in (*dict.fromkeys(one.item.subset for one in judged), "all"):
            count, likeness = Pooled(), Pooled()
            for one in judged:
                if part in (one.item.subset, "all"):
                    self._pool(one, count, likeness)
            found[f"count_accuracy/{part}"], found[f"id_match/{part}"] = count.described(100), likeness.described(100)
        return found

    @staticmethod
    def _pool(one: Judged, count: Pooled, likeness: Pooled) -> None:
        (seen,) = one.pictures
        if seen.error:
            count.skipped["missing or unreadable picture"] += 1
            likeness.skipped["missing or unreadable picture"] += 1
            return
        people = len(one.references)
        count.values.append(float(len(seen.embeddings) == people))
        if not all(len(reference.embeddings) for reference in one.references):
            likeness.skipped["reference without a face"] += 1
            return
        cosines = cosine_matrix(np.stack([one.embeddings[0] for one in one.references]), seen.embeddings)
        likeness.values.append(float(np.nansum(assigned_cosines(cosines, assign(cosines)))) / people)


def _places(prompt: str, n: int) -> tuple[float, ...] | None:
    """Ranks from left to right of pictures 1 to n, where a prompt gives one to each."""
    found = {int(number) - 1: float(RANKS[word.lower()]) for word, number in STANDS.findall(prompt)}
    return (
        tuple(found[k] for k in range(n)) if found.keys() == set(range(n)) and len(set(found.values())) == n else None
    )
