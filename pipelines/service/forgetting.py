"""`python -m pipelines forget` as a flow runs it: what it says goes to Prefect without the places of photographs.

A photograph's path may be somebody's name, and Prefect keeps what it is told. The whole text is in `.prefect/`, for
whoever has to delete originals.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.service.commands import follow
from pipelines.service.privacy import without_places
from umo.errors import BadInput, WorkFailed

WHOLE = Path(".prefect/forget.log")
PHOTO = "--photo="


def forget(options: Sequence[str], log: Callable[[str], None], root: Path = Path()) -> str:
    """Run it; returns its last line, which where it fails is the error's.

    Args:
        options: of the command; a photograph as --photo=FILE.
    """
    photos = [option.removeprefix(PHOTO) for option in options if option.startswith(PHOTO)]
    said: list[str] = []
    whole = root / WHOLE
    whole.parent.mkdir(parents=True, exist_ok=True)
    whole.unlink(missing_ok=True)
    whole.touch(mode=0o600)
    with whole.open("w") as file:

        def hear(line: str) -> None:
            file.write(f"{line}\n")
            for photo in photos:
                line = line.replace(photo, "the photograph")
            said.append(without_places(line))
            log(said[-1])

        code = follow([sys.executable, "-m", "pipelines", "forget", *options], hear, root)
    log(f"in full, with the places of photographs: {WHOLE}")
    last = said[-1] if said else "forget said nothing"
    if code:
        raise (BadInput if code == BadInput.exit_code else WorkFailed)(last)
    return last
