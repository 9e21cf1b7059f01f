"""Lines as Prefect may keep them, without the places of photographs, for a path may be somebody's name; and forget as a
flow runs it, whose lines go to Prefect so. Its whole text is in `.prefect/`, for whoever has to delete originals.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.service.commands import follow
from umo.errors import BadInput, WorkFailed

WHOLE = Path(".prefect/forget.log")
PHOTO = "--photo="
# To the last suffix before a colon, for a folder's name may hold colons too; where there is none, to the first colon.
PLACE = r"(?:.*\.\w+(?=: )|.*?(?=: |$))"
TURNED_AWAY = re.compile(rf"^(ingest: [^/:]+/)(?<!ingest: \.work/){PLACE}(?=: )")
COPY = re.compile(r"(the same bytes as ).*(?=; )")
BELOW_PHOTOS = re.compile(rf"datasets/photos/{PLACE}")
ELSEWHERE = re.compile(rf"""(?<![\w.…>/])(?<!File ")/(?=[^\s/]){PLACE}""")  # a traceback's lines stay as they are


class CopiesRemain(WorkFailed):
    """Somebody was forgotten here, and a copy that forget leaves where it is still holds them, or may."""

    exit_code = 3


def without_places(line: str) -> str:
    """A line of ingest's or forget's in which no photograph is named."""
    line = COPY.sub(r"\1another", TURNED_AWAY.sub(r"\1…", line))
    return ELSEWHERE.sub("/…", BELOW_PHOTOS.sub("datasets/photos/…", line))


def forget(options: Sequence[str], log: Callable[[str], None], root: Path = Path()) -> str:
    """Run `python -m pipelines forget`, a photograph given as --photo=FILE; returns its last line, also where copies
    remain, or raises it where the command failed.
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
    if code not in (0, CopiesRemain.exit_code):
        raise (BadInput if code == BadInput.exit_code else WorkFailed)(last)
    return last
