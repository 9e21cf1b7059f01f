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
    """
    person_id: None where only pictures are to go.
    image_ids: of the photographs.
    phashes: by image_id, of what was photographed, without padding; "" where there is none.
    derived: image_ids of the scenes made from them.
    centre, min_cosine: of the person's faces, and how near a face must be to be theirs; no centre, no such search.
    ingested: the hash of the ingested pictures in dvc.lock as it was.
    models: folders of models that saw them.
    originals: the files the pictures were read from.
    rebuild: DVC stages that are there and are made anew.
    drop_models, delete_originals: what the user asked for.
    """

    person_id: str | None
    image_ids: list[str]
    phashes: dict[str, str]
    derived: list[str] = []
    centre: list[float] = []
    min_cosine: float = 1
    ingested: str | None = None
    models: list[Path] = []
    originals: list[Path] = []
    rebuild: list[str] = []
    drop_models: bool = False
    delete_originals: bool = False

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

    @staticmethod
    def remove() -> None:
        """Done."""
        NOTE.unlink(missing_ok=True)

    def everything(self) -> frozenset[str]:
        """image_ids of photographs and scenes."""
        return frozenset([*self.image_ids, *self.derived])

    def vector(self) -> np.ndarray | None:
        """The centre (d,)."""
        return np.array(self.centre, np.float32) if self.centre else None
