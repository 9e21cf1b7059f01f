"""What a forget has set out to do, kept in .work until it is done, so that a killed one can be finished.

It holds the centres of the person's faces: by them alone a finished run can prove that no embedding is left. It is
readable by its owner only, and removing it is the last step.
"""

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from pipelines.service.repository import NOTE
from umo.errors import BadInput
from umo.files import replacing


class Note(BaseModel):
    """Who is to go, and what there was of them when it began."""

    person_ids: list[str]  # none where only pictures are to go
    image_ids: list[str]  # of the photographs
    phashes: dict[str, str]  # by image_id, of what was photographed, without padding; "" where there is none
    derived: list[str] = []  # image_ids of the scenes made from them
    centres: list[list[float]] = []  # of the person's faces, one a person_id; none: no search for embeddings
    min_cosine: float = 1  # how near to one of them a face must be to be theirs
    ingested: str | None = None  # the hash of the ingested pictures in dvc.lock as it was
    models: list[Path] = []  # folders of models that saw them
    originals: list[Path] = []  # the files the pictures were read from
    rebuild: list[str] = []  # DVC stages that are there and are made anew
    drop_models: bool = False  # as the user asked
    delete_originals: bool = False  # as the user asked
    lost: list[str] = []  # objects of DVC's cache that go, by their md5
    also: list[Path] = []  # folders outside the repository that commands of umo wrote to, as the user named them
    kept: list[Path] = []  # files and folders that go of what commands of umo wrote

    @classmethod
    def read(cls) -> "Note | None":
        """What was interrupted, if anything was; BadInput where another version of this program began it."""
        try:
            return cls.model_validate_json(NOTE.read_text()) if NOTE.exists() else None
        except ValidationError as error:
            raise BadInput(f"{NOTE}: of another version of this program: finish with that, or remove it") from error

    def write(self) -> None:
        """Keep it."""
        NOTE.parent.mkdir(exist_ok=True)
        with replacing(NOTE) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(self.model_dump_json())

    def vectors(self) -> np.ndarray:
        """The centres (k, d)."""
        return np.array(self.centres, np.float32) if self.centres else np.zeros((0, 0), np.float32)
