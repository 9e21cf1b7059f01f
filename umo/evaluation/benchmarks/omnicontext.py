"""OmniContext (of OmniGen2): eight kinds of instructions over one to three pictures, in a table on the Hub.

Its own score is a vision-language model's, read from the files that its script left. Likeness is as in UMO's script
`id_omnicontext`.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from umo.errors import BadInput
from umo.evaluation.benchmarks.base import (
    Benchmark,
    Item,
    Judged,
    Pooled,
    none_strange,
)
from umo.evaluation.metrics import id_conf, id_sim
from umo.files import replacing
from umo.matching import cosine_matrix
from umo.rows import ParquetSource
from umo.texts import parse_json, read_text

COLUMNS = ("key", "task_type", "instruction", "input_images")
WITHOUT_PEOPLE = ("single_object", "multi_object", "scene_object")
PICTURES, SCORES = "fullset", "gpt4dot1"
PARTS = ("PF_score", "SC_score")


class OmniContext(Benchmark):
    """Whoever is seen in an input is asked for: a face in a picture of a scene too, as UMO's script has it."""

    name = "omnicontext"
    title = "OmniContext"
    revision = "VectorSpaceLab/OmniGen2 @0f72fa9; likeness by bytedance/UMO @aada3dc"
    licence = "code Apache-2.0; the data's is not stated in what was read"
    judge = "IR-SE50 on the largest face of facer's retinaface/resnet50 (box x 1.3); GPT-4.1 for PF and SC"
    embedders = ("model_ir_se50.pth",)
    size = (1024, 1024)
    layout = "a snapshot of OmniGen2/OmniContext (*.parquet), or a folder of datasets' save_to_disk"
    results = "the folder of one model, with fullset/{task_type}/{key}.png"

    def items(self, root: Path, work: Path) -> list[Item]:
        items, keys = [], set()
        for where, row in _rows(root):
            key, kind = row["key"], row["task_type"]
            named = all(isinstance(one, str) and one and not {"/", "\\", "\0"} & {*one} for one in (key, kind))
            if not named or key in keys:
                raise BadInput(f"{where}: key {key!r} of {kind!r} names no file, or is there twice; copy it again")
            keys.add(key)
            inputs = tuple(
                _written(work / f"{kind}-{key}-{k}", image, where) for k, image in enumerate(row["input_images"] or ())
            )
            people = () if kind in WITHOUT_PEOPLE else None
            items.append(Item(key, kind, str(row["instruction"]), inputs, people))
        return items

    def drawn(self, items: Sequence[Item], results: Path, work: Path) -> list[tuple[Path, ...]]:
        folder = results / PICTURES
        if not folder.is_dir():
            raise BadInput(f"{results}: no folder {PICTURES} in it; give {self.results}")
        there = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        expected = [folder / item.subset / f"{item.key}.png" for item in items]
        several = {path.with_name(f"{path.stem}_{k}.png") for path in expected for k in range(10)}
        if not set(expected) & set(there):
            raise BadInput(f"{folder}: none of its {len(there)} files is a result; give {self.results}")
        none_strange(sorted(set(there) - set(expected) - several), results, self.results)
        return [(path,) for path in expected]

    def arrange(self, item: Item, pictures: Sequence[Path], results: Path) -> None:
        path = results / PICTURES / item.subset / f"{item.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            Image.open(pictures[0]).save(temporary, format="PNG")

    def published(self, judged: Sequence[Judged], results: Path) -> dict[str, Any]:
        """ID-Sim and ID-Conf x 10, a part each kind, `avg` pooled over references; and PF and SC where they are.

        The reference is the largest face of an input; inputs without a face are passed over. A missing picture stops
        the script: then there is no number.
        """
        found: dict[str, Any] = {}
        asked = [one for one in judged if one.item.subset not in WITHOUT_PEOPLE]
        kinds = dict.fromkeys(one.item.subset for one in asked)
        missing = sum(one.pictures[0].error is not None for one in asked)
        for part in (*kinds, "avg"):
            similarity, certainty = Pooled(), Pooled()
            if missing:
                reason = f"the published script stops: {missing} pictures missing"
                similarity.skipped[reason] = certainty.skipped[reason] = missing
            else:
                for one in asked:
                    if part in (one.item.subset, "avg"):
                        _pool(one, similarity, certainty)
            found[f"id_sim/{part}"], found[f"id_conf/{part}"] = similarity.described(10), certainty.described(10)
        return found | _by_a_language_model(judged, results / SCORES)


def _pool(one: Judged, similarity: Pooled, certainty: Pooled) -> None:
    faceless = len(one.item.inputs) - len(one.references)
    if faceless:
        similarity.skipped["input without a face"] += faceless
    for reference in one.references:
        cosines = cosine_matrix(reference.main()[None], one.pictures[0].embeddings)
        similarity.values.append(id_sim(cosines))
        certain = id_conf(cosines)
        if certain is None:
            certainty.skipped["picture with fewer than two faces"] += 1
        else:
            certainty.values.append(certain)


def _by_a_language_model(judged: Sequence[Judged], folder: Path) -> dict[str, Any]:
    """The mean of sqrt(PF SC) of each kind, and the plain mean of the kinds (`overall`); nothing without its files.

    An item without a line is passed over, as published, and counted. Its script writes a random number where it cannot
    read an answer, which cannot be seen in the files.
    """
    if not folder.is_dir():
        return {}
    found, means = {}, []
    for kind in dict.fromkeys(one.item.subset for one in judged):
        keys = [one.item.key for one in judged if one.item.subset == kind]
        scores = _scores(folder / kind / "score.jsonl")
        pooled = Pooled([scores[key] for key in keys if key in scores])
        if lacking := len(keys) - len(pooled.values):
            pooled.skipped["without a score"] = lacking
        found[f"vlm/{kind}"] = pooled.described()
        means += [] if found[f"vlm/{kind}"]["mean"] is None else [found[f"vlm/{kind}"]["mean"]]
    return found | {"vlm/overall": Pooled(means).described()}


def _scores(path: Path) -> dict[str, float]:
    """key -> sqrt(PF SC), the last line of a key counting."""
    found = {}
    for number, line in enumerate(read_text(path).split("\n") if path.is_file() else (), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            parts = [float(row[name]) for name in PARTS]
            found[row["key"]] = math.sqrt(parts[0] * parts[1])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}:{number}: no line with key, PF_score and SC_score in [0, 10]") from error
    return found


def _rows(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, and the row, pictures as they are stored."""
    files = sorted(root.rglob("*.parquet"))
    if files:
        for path in files:
            source = ParquetSource(path)
            _check(path, source.schema)
            number = 0
            for group in range(len(source.groups)):
                for batch in source.batches(group, list(COLUMNS)):
                    for row in batch.to_pylist():
                        yield f"{path}: row {number}", row
                        number += 1
    elif (root / "state.json").is_file() or (root / "dataset_dict.json").is_file():
        import datasets

        try:
            loaded = datasets.load_from_disk(str(root))
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise BadInput(f"{root}: datasets cannot load it ({' '.join(str(error).split())[:200]})") from error
        table = loaded["train"] if isinstance(loaded, dict) else loaded
        _check(root, table.features.arrow_schema)
        arrow = table.select_columns(list(COLUMNS)).with_format("arrow")
        for number in range(len(table)):
            (row,) = arrow[number : number + 1].to_pylist()
            yield f"{root}: row {number}", row
    else:
        raise BadInput(
            f"{root}: neither *.parquet nor a folder of datasets' save_to_disk; download OmniGen2/OmniContext"
        )


def _check(where: Path, schema: pa.Schema) -> None:
    if lacking := [name for name in COLUMNS if name not in schema.names]:
        raise BadInput(f"{where}: no column '{lacking[0]}'; it must have {', '.join(COLUMNS)}")


def _written(stem: Path, image: Any, where: str) -> Path:
    """A picture of the table as a file beside `stem`, its bytes as they are."""
    data = image.get("bytes") if isinstance(image, dict) else None
    if not data:
        raise BadInput(f"{where}: a picture without bytes; save the data set with its pictures in it")
    path = stem.with_name(f"{stem.name}.picture")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != data:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    return path
