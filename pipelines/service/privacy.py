"""Lines as Prefect may keep them: without the places of photographs, for a path may be somebody's name."""

import re

# To the last suffix before a colon, for a folder's name may hold colons too; where there is none, to the first colon.
PLACE = r"(?:.*\.\w+(?=: )|.*?(?=: |$))"
TURNED_AWAY = re.compile(rf"^(ingest: [^/:]+/)(?<!ingest: \.work/){PLACE}(?=: )")
COPY = re.compile(r"(the same bytes as ).*(?=; )")
BELOW_PHOTOS = re.compile(rf"datasets/photos/{PLACE}")
ELSEWHERE = re.compile(rf"""(?<![\w.…>/])(?<!File ")/(?=[^\s/]){PLACE}""")  # a traceback's lines stay as they are


def without_places(line: str) -> str:
    """A line of ingest's or forget's in which no photograph is named."""
    for pattern, instead in (
        (TURNED_AWAY, r"\1…"),
        (COPY, r"\1another"),
        (BELOW_PHOTOS, "datasets/photos/…"),
        (ELSEWHERE, "/…"),
    ):
        line = pattern.sub(instead, line)
    return line
