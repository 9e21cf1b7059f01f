"""UNO's training JSON: a list of {"image_paths", "prompt", "image_tgt_path"}, paths relative to the JSON's folder."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

FOLDER = "uno"
EXTRA = ("set_id", "n", "person_ids", "source", "sources", "licence", "consent")


def write(folder: Path, sets: Sequence[dict]) -> None:
    """Write the pictures of sets as files below FOLDER/uno; a reference that several sets show is one file."""
    for row in sets:
        files = {target_path(row["set_id"], row["target"]["path"]): row["target"]["bytes"]}
        files |= {reference_path(image["path"]): image["bytes"] for image in row["references"]}
        for name, data in files.items():
            path = folder / FOLDER / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


# A folder of a million files is slow everywhere: two characters of the name spread them.
def target_path(set_id: str, key: str) -> str:
    """Of a set's target, relative to the JSON."""
    name = f"{set_id}{Path(key).suffix}"
    return f"targets/{name[1:3]}/{name}"


def reference_path(name: str) -> str:
    """Of a reference, relative to the JSON."""
    return f"references/{name[:2]}/{name}"


def write_records(path: Path, sets: Iterable[dict]) -> None:
    """The JSON of a split, a record a line; UNO reads the first three keys and passes over the rest.

    Args:
        sets: rows with `target_key` (name of the stored target) and `pool` (entries with face_id, the first of each
            person's is the reference).
    """
    with path.open("w") as file:
        separator = "[\n"
        for row in sets:
            record = {
                "image_paths": [reference_path(f"{pool[0]['face_id']}.jpg") for pool in row["pool"]],
                "image_tgt_path": target_path(row["set_id"], row["target_key"]),
                "prompt": row["prompt"],
                **{name: row[name] for name in EXTRA},
            }
            file.write(separator + json.dumps(record, sort_keys=True))
            separator = ",\n"
        file.write("\n]\n")
