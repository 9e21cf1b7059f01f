"""A workspace of its own under .work/ladder, in which a cell's stages run with other values in params.yaml.

It has links to this workspace's data and models. What its stages finish stays there, so that cells share what they have
in common: encoded samples, what the judge saw, a training.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from pipelines.core.params import PARAMS, SECTIONS, load_all
from pipelines.core.shards import WORK
from umo.files import write_text

SPACE = WORK / "ladder"
GIVEN = ("datasets", "models")


@contextlib.contextmanager
def space(params: Mapping[str, Any]) -> Iterator[None]:
    """Be in that workspace, with these values."""
    SPACE.mkdir(parents=True, exist_ok=True)
    for name in GIVEN:
        with contextlib.suppress(FileExistsError):
            (SPACE / name).symlink_to(Path(name).resolve())
    write_text(SPACE / PARAMS, yaml.safe_dump(dict(params), sort_keys=False))
    with contextlib.chdir(SPACE):
        yield


def run_stage(stage: ModuleType, *parts: str) -> None:
    """A stage of the graph, as `python -m pipelines STAGE --of PART` runs it; `stage` is its stage.py."""
    params = load_all(SECTIONS)
    name = stage.__name__.split(".")[1]
    stage.run(params[name], params["machine"], *parts)
