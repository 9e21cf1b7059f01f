"""What a forget has set out to do, kept in .work until it is done, so that a killed one can be finished.

It holds the centre of the person's faces: by it alone a finished run can prove that no embedding is left. It is
readable by its owner only, and removing it is the last step.
"""

from pathlib import Path

import numpy as np
from pydantic import BaseModel

from pipelines.service.repository import NOTE
from umo.files import replacing


class Note(BaseModel):
    """Who is to go, and what there was of them when it began."""

    person_id: str | None  # None where only pictures are to go
    image_ids: list[str]  # of the photographs
    phashes: dict[str, str]  # by image_id, of what was photographed, without padding; "" where there is none
    derived: list[str] = []  # image_ids of the scenes made from them
    centre: list[float] = []  # of the person's faces; empty: no search for embeddings
    min_cosine: float = 1  # how near to it a face must be to be theirs
    ingested: str | None = None  # the hash of the ingested pictures in dvc.lock as it was
    models: list[Path] = []  # folders of models that saw them
    originals: list[Path] = []  # the files the pictures were read from
    rebuild: list[str] = []  # DVC stages that are there and are made anew
    drop_models: bool = False  # as the user asked
    delete_originals: bool = False  # as the user asked

    @classmethod
    def read(cls) -> "Note | None":
        """What was interrupted, if anything was."""
        return cls.model_validate_json(NOTE.read_text()) if NOTE.exists() else None

    def write(self) -> None:
        """Keep it."""
        NOTE.parent.mkdir(exist_ok=True)
        with replacing(NOTE) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(self.model_dump_json())

    def vector(self) -> np.ndarray | None:
        """The centre (d,)."""
        return np.array(self.centre, np.float32) if self.centre else None
