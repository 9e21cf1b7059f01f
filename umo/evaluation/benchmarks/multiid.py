"""MultiID-Bench (of WithAnyone, arXiv 2510.14975): real pictures of one to four people, each person from another one.

A result is a folder with the drawn picture, the real one and the references in it, so that it can be scored alone.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from umo.errors import BadInput
from umo.evaluation.benchmarks.base import Benchmark, Item, Judged, Pooled, inside, none_strange, read_list
from umo.evaluation.judges import Seen
from umo.files import replacing, write_text
from umo.matching import NONE, assign, cosine_matrix
from umo.texts import read_json

FOLDERS = {"p1": "p1/untar", "p2": "p2/untar", "p3": "p3"}  # what the paths of a list are relative to
DRAWN, REAL, META = "out.jpg", "ori.jpg", "meta.json"
SAME = 1e-6  # radians between reference and target, below which copying is not defined and counts 0
FENCE = 1.5  # interquartile ranges beyond the quartiles


class MultiID(Benchmark):
    """References and targets are read from the local copy, not from the results."""

    name = "multiid"
    title = "MultiID-Bench"
    revision = "Doby-Xu/WithAnyone @996d152"
    licence = "code Apache-2.0; data non-commercial"
    judge = "the mean of insightface's buffalo_l, FaceNet (vggface2) and AdaFace (ir_50, ms1mv2)"
    embedders = ()
    size = (512, 512)
    layout = "p1.json, p2.json, p3.json and their pictures, as hf2bench.py writes them"
    results = f"a folder an item, named as its target ({{0001}}), with {DRAWN}, {META} and the item's pictures"

    def items(self, root: Path, work: Path) -> list[Item]:
        items: list[Item] = []
        there = [subset for subset in FOLDERS if (root / f"{subset}.json").is_file()]
        if not there:
            raise BadInput(f"{root}: none of {', '.join(f'{name}.json' for name in FOLDERS)}; give {self.layout}")
        for subset in there:
            file = root / f"{subset}.json"
            for k, row in enumerate(read_list(file, ("prompt", "image_paths", "ori_img_path"))):
                where, folder = f"{file}: entry {k}", root / FOLDERS[subset]
                if not isinstance(row["image_paths"], list) or not row["image_paths"]:
                    raise BadInput(f"{where}: no image_paths; copy it again")
                inputs = tuple(inside(folder, path, where) for path in row["image_paths"])
                target = inside(folder, row["ori_img_path"], where)
                items.append(Item(target.stem, subset, str(row["prompt"]), inputs, tuple(range(len(inputs))), target))
        keys = [item.key for item in items]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise BadInput(f"{root}: two items have a target named {min(twice)}; their results cannot be told apart")
        return items

    def drawn(self, items: Sequence[Item], results: Path, work: Path) -> list[tuple[Path, ...]]:
        if not results.is_dir():
            raise BadInput(f"{results}: no such folder of results")
        folders = {path.name: path for path in sorted(results.iterdir()) if path.is_dir() and path.name[0] != "."}
        strange = sorted(folders.keys() - {item.key for item in items})
        if not folders or len(strange) == len(folders):
            raise BadInput(f"{results}: no folder of it is named as an item ({items[0].key}); give {self.results}")
        none_strange([results / name for name in strange], results, self.results)
        for item in items:
            meta = results / item.key / META
            if meta.is_file() and _prompt(meta) != item.prompt:
                raise BadInput(f"{meta}: its prompt is another than the item's; these are results of something else")
        return [(results / item.key / DRAWN,) for item in items]

    def arrange(self, item: Item, pictures: Sequence[Path], results: Path) -> None:
        with replacing(results / item.key) as folder:
            folder.mkdir(parents=True)
            Image.open(pictures[0]).convert("RGB").save(folder / DRAWN, quality=95, subsampling=0)
            assert item.target is not None
            shutil.copyfile(item.target, folder / REAL)
            for k, path in enumerate(item.inputs, start=1):
                shutil.copyfile(path, folder / f"ref_{k}.jpg")
            write_text(folder / META, json.dumps({"prompt": item.prompt}) + "\n")

    def published(self, judged: Sequence[Judged], results: Path) -> dict[str, Any]:
        """Likeness to the target and to the references, cosines off the assignment, and copying, a part each subset.

        A failure is skipped, and a missing person costs nothing. A mean leaves out what lies more than 1.5
        interquartile ranges beyond the quartiles, and is the median where that is more than half (`typical`).
        """
        found: dict[str, Any] = {}
        for subset in dict.fromkeys(one.item.subset for one in judged):
            parts = {name: Pooled() for name in ("sim_gt", "sim_ref", "non_matched", "copy_geo")}
            for one in judged:
                if one.item.subset == subset:
                    self._pool(one, parts)
            found |= {f"{name}/{subset}": pooled.described(mean=typical) for name, pooled in parts.items()}
        return found

    def _pool(self, one: Judged, parts: dict[str, Pooled]) -> None:
        picture, target = one.pictures[0], one.target
        reason = None
        if not len(picture.embeddings):
            reason = "no picture" if picture.error else "no face in the picture"
        elif target is None or not len(target.embeddings):
            reason = "no face in the target"
        elif not all(len(seen.embeddings) for seen in one.references):
            reason = "no face in a reference"
        if reason or target is None:
            for pooled in parts.values():
                pooled.skipped[reason or ""] += 1
            return
        references = np.stack([seen.embeddings[0] for seen in one.references])
        to_target = cosine_matrix(target.embeddings, picture.embeddings)
        to_reference = cosine_matrix(references, picture.embeddings)
        of_target, of_reference = assign(to_target), assign(to_reference)
        parts["sim_gt"].values.append(_mean(to_target, of_target))
        parts["sim_ref"].values.append(_mean(to_reference, of_reference))
        others = np.ones(to_reference.shape, bool)
        (rows,) = np.nonzero(of_reference != NONE)
        others[rows, of_reference[rows]] = False
        if others.any():
            parts["non_matched"].values.append(float(to_reference[others].mean()))
        else:
            parts["non_matched"].skipped["one person"] += 1
        if len(picture.embeddings) == len(target.embeddings) == len(references):
            parts["copy_geo"].values.append(copied(picture, target, references, of_target, of_reference))
        else:
            parts["copy_geo"].skipped["numbers of faces differ"] += 1


def copied(
    picture: Seen, target: Seen, references: np.ndarray, of_target: np.ndarray, of_reference: np.ndarray
) -> float:
    """The mean over the drawn faces of `(angle to target - angle to reference) / angle between these two`.

    A drawn face has the target's and the reference that it is assigned to, each on its own.

    Args:
        references: (n, d).
        of_target, of_reference: (n,) the drawn face of each face of the target, and of each reference.
    """
    values = []
    for face, vector in enumerate(picture.embeddings.astype(float)):
        real = target.embeddings[int(np.nonzero(of_target == face)[0][0])].astype(float)
        reference = references[int(np.nonzero(of_reference == face)[0][0])].astype(float)
        to_real, to_reference, apart = (
            float(np.arccos(np.clip(a @ b, -1, 1))) for a, b in ((vector, real), (vector, reference), (real, reference))
        )
        values.append((to_real - to_reference) / apart if apart >= SAME else 0.0)
    return float(np.mean(values))


def typical(values: Sequence[float]) -> float:
    """The published "mean": without outliers, or the median where more than half are outliers."""
    given = np.asarray(values, dtype=float)
    low, high = np.percentile(given, [25, 75])
    margin = FENCE * (high - low)
    kept = given[(given >= low - margin) & (given <= high + margin)]
    return float(np.median(given)) if 2 * len(kept) < len(given) else float(kept.mean())


def _mean(cosines: np.ndarray, assignment: np.ndarray) -> float:
    (rows,) = np.nonzero(assignment != NONE)
    return float(cosines[rows, assignment[rows]].mean())


def _prompt(path: Path) -> object:
    try:
        found = read_json(path)
    except ValueError as error:
        raise BadInput(f"{path}: {error}; copy it again") from error
    return found.get("prompt") if isinstance(found, dict) else None
