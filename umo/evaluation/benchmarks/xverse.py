"""XVerseBench (arXiv 2506.21416): two lists, one of single subjects and one of two or three; faces, animals, objects.

Only people are judged here, as its `idip_face_score` and UMO's `id_conf_xversebench` do.
"""

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from umo.errors import BadInput
from umo.evaluation.benchmarks.base import (
    NAMED,
    Benchmark,
    Item,
    Judged,
    Pooled,
    files_in,
    inside,
    none_strange,
    read_list,
)
from umo.evaluation.metrics import id_conf, id_sim
from umo.files import replacing
from umo.images import ImageError, read_image
from umo.matching import cosine_matrix

HUMAN = "/human/"
QUARTERS = 4
SIDECARS = (".json", ".txt")
NUMBER = re.compile(r"(\d+)(_.*)?", re.DOTALL)
SEAM = 1.5  # times as large a step as beside it, across the middle of a picture of several


class XVerse(Benchmark):
    """The list `part`; an item's four pictures are the quarters of one file."""

    revision = "bytedance/XVerse @65e2581"
    licence = "code Apache-2.0; photographs of people CC0, others by DreamBench++'s terms"
    judge = "IR-SE50 on faces of facer's retinaface/resnet50 (score over .8, box x 1.3)"
    embedders = ("model_ir_se50.pth",)
    size = (768, 768)
    seeds = QUARTERS
    results = "one folder with {index}_{prompt[:40]}.png, each four pictures in a 2x2 grid"
    part: ClassVar[str]

    def items(self, root: Path, work: Path) -> list[Item]:
        file = root / f"eval/tools/XVerseBench_{self.part}.json"
        items = []
        for k, row in enumerate(read_list(file, ("index", "prompt", "modulation"))):
            where = f"{file}: entry {k}"
            if row["index"] != k:
                raise BadInput(f"{where}: its index is {row['index']}, and must be its position; copy it again")
            try:
                sources = [one for part in row["modulation"] for one in part["src_inputs"]]
                paths = [one["image_path"] for one in sources]
            except (KeyError, TypeError) as error:
                raise BadInput(f"{where}: no modulation with src_inputs and their image_path; copy it again") from error
            inputs = tuple(inside(root, path, where) for path in paths)
            people = tuple(rank for rank, path in enumerate(paths) if HUMAN in path)
            items.append(Item(str(k), f"{len(people)} people", row["prompt"], inputs, people))
        return items

    def drawn(self, items: Sequence[Item], results: Path, work: Path) -> list[tuple[Path, ...]]:
        """The quarters, cut out below `work`; files are told by the number before the first `_`."""
        files: dict[str, Path] = {}
        strange = []
        for path in files_in(results, SIDECARS):
            number = NUMBER.fullmatch(path.stem)
            if path.suffix != ".png" or number is None or int(number[1]) >= len(items):
                strange.append(path)
                continue
            other = files.setdefault(str(int(number[1])), path)
            if other != path:
                raise BadInput(f"{results}: {other.name} and {path.name} are both of index {number[1]}: remove one")
        none_strange(strange, results, f"{self.results}, index 0 to {len(items) - 1}")
        asked = [item for item in items if item.people]
        self._refuse_lone([files[item.key] for item in asked if item.key in files])
        work.mkdir(parents=True, exist_ok=True)
        # Of a missing file a name without the newline that a prompt may bring in.
        return [_quartered(files.get(item.key, results / f"{item.key}.png"), work, item.key) for item in items]

    def _refuse_lone(self, paths: Sequence[Path]) -> None:
        """Raises BadInput where files are no grids: without a middle, or most of them without a seam there."""
        lone = []
        for path in paths:
            try:
                picture = read_image(path)
            except ImageError:
                continue  # it is judged as a picture without a face, with its reason
            if picture.shape[0] % 2 or picture.shape[1] % 2:
                raise BadInput(f"{path}: {picture.shape[1]}x{picture.shape[0]} px has no middle; a 2x2 grid is needed")
            if not has_seam(picture):
                lone.append(path)
        if 2 * len(lone) > len(paths):
            names = ", ".join(path.name for path in lone[:NAMED])
            raise BadInput(
                f"{len(lone)} of {len(paths)} files look like one picture each and not like a 2x2 grid ({names}): the "
                f"published script cuts every file into quarters; lay {QUARTERS} pictures an item out as a grid"
            )

    @staticmethod
    def file_name(item: Item) -> str:
        """As XVerse's script names it: a prompt's spaces, and nothing else, are replaced."""
        return f"{item.key}_{item.prompt[:40].replace(' ', '_')}.png".replace("/", "_")

    def arrange(self, item: Item, pictures: Sequence[Path], results: Path) -> None:
        cells = [np.asarray(Image.open(path).convert("RGB")) for path in pictures]
        grid = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
        with replacing(results / self.file_name(item)) as temporary:
            Image.fromarray(grid).save(temporary, format="PNG")

    def published(self, judged: Sequence[Judged], results: Path) -> dict[str, Any]:
        """ID-Sim and ID-Conf x 100, pooled over cases, pictures and references.

        The reference is the face that the detector is surest of; a reference that cannot be opened is passed over. The
        number of files must be that of the list, or the script stops: then there is no number.
        """
        similarity, certainty = Pooled(), Pooled()
        files = len(list(results.glob("*.png")))
        if files != len(judged):
            stopped = Pooled(skipped=Counter({f"the published script stops at {files} files": len(judged)}))
            judged, similarity, certainty = (), stopped, stopped
        for one in judged:
            for reference in one.references:
                if not len(reference.embeddings):
                    similarity.skipped["reference that cannot be used"] += QUARTERS
                    continue
                for seen in one.pictures:
                    if seen.error:
                        similarity.skipped["picture that cannot be read"] += 1
                        continue
                    cosines = cosine_matrix(reference.embeddings[:1], seen.embeddings)
                    similarity.values.append(id_sim(cosines))
                    certain = id_conf(cosines)
                    if certain is None:
                        certainty.skipped["picture with fewer than two faces"] += 1
                    else:
                        certainty.values.append(certain)
        found = {"id_sim": similarity.described(100)}
        return found | ({"id_conf": certainty.described(100)} if self.part == "multi" else {})


class XVerseSingle(XVerse):
    name, title, part = "xverse-single", "XVerseBench, single subjects", "single"
    layout = "eval/tools/XVerseBench_single.json, and the pictures that it names"


class XVerseMulti(XVerse):
    name, title, part = "xverse-multi", "XVerseBench, several subjects", "multi"
    layout = "eval/tools/XVerseBench_multi.json, and the pictures that it names"


def _quartered(path: Path, work: Path, key: str) -> tuple[Path, ...]:
    """The quarters of a grid, row by row, as files; one that cannot be read four times as it is."""
    if not path.is_file():
        return (path,) * QUARTERS
    cells = tuple(work / f"{key}-{k}.png" for k in range(QUARTERS))
    try:
        picture = read_image(path)
    except ImageError:
        for cell in cells:
            with replacing(cell) as temporary:
                shutil.copyfile(path, temporary)
        return cells
    height, width = (side // 2 for side in picture.shape[:2])
    for k, cell in enumerate(cells):
        top, left = k // 2 * height, k % 2 * width
        quarter = Image.fromarray(picture[top : top + height, left : left + width])
        with replacing(cell) as temporary:
            quarter.save(temporary, format="PNG", compress_level=1)
    return cells


def has_seam(picture: np.ndarray) -> bool:
    """Whether pictures (H, W, 3) meet in the middle: a larger step there than beside it, in one direction at least.

    A picture that is flat there may be a grid as well.
    """
    for axis in (0, 1):
        middle = picture.shape[axis] // 2
        band = np.take(picture, range(max(0, middle - 9), middle + 9), axis).astype(float)
        steps = np.abs(np.diff(band, axis=axis)).mean(axis=(1 - axis, 2))
        seam, beside = steps[len(steps) // 2], np.delete(steps, len(steps) // 2)
        if seam > SEAM * np.median(beside) or steps.max() < 1:
            return True
    return False
