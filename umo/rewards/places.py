"""Where somebody absent should be: a place of the target picture at which no face was found."""

from collections.abc import Sequence

import numpy as np

from umo.faces.base import Face
from umo.matching import NONE, assign


def face_at(landmarks: np.ndarray) -> Face:
    """A face of which five landmarks are known; its box is just around them."""
    points = np.asarray(landmarks, np.float32).reshape(5, 2)
    return Face(np.concatenate([points.min(axis=0), points.max(axis=0)]), points, 1.0)


def free_places(places: np.ndarray, faces: Sequence[Face]) -> list[int]:
    """Those of (M, 5, 2) landmarks that are left when each found face has taken the nearest, one each."""
    if not len(faces):
        return list(range(len(places)))
    found = np.stack([face.landmarks.mean(axis=0) for face in faces])
    distances = np.linalg.norm(places.mean(axis=1)[:, None] - found[None], axis=2)
    return np.nonzero(assign(-distances) == NONE)[0].tolist()


def absent_at(cosines: np.ndarray, free: Sequence[int]) -> dict[int, int]:
    """Free place -> absent person, as many as there are places: at their own place, where it is free, or in order.

    `cosines` (M, N) are of the faces found; absent is whom the assignment leaves without a face.
    """
    absent = np.nonzero(assign(cosines) == NONE)[0].tolist()
    found = {place: place for place in free if place in absent}
    others = (person for person in absent if person not in found)
    return found | dict(zip((place for place in free if place not in found), others, strict=True))
