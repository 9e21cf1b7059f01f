"""Who is who: references against drawn faces. Pure: numpy in, numpy out; it knows nothing of networks or pictures."""

from dataclasses import dataclass

import numpy as np

NONE = -1


class NotFinite(ValueError):
    """A cosine is NaN or infinite: the pictures or the embeddings are broken."""


@dataclass(frozen=True, slots=True)
class Matching:
    """An assignment and what follows from it at a threshold.

    Attributes:
        assignment: (M,) int, the drawn face of each reference; -1 where none is left.
        covered: references whose assigned face is the same person (cosine >= the threshold).
        missing: the other references, M - covered.
        duplicated: unassigned faces that are the same person as some reference.
        extra: the other unassigned faces.
    """

    assignment: np.ndarray
    covered: int
    missing: int
    duplicated: int
    extra: int


def cosine_matrix(references: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(M, d) and (N, d) unit vectors -> (M, N) cosines, a row a reference, a column a drawn face."""
    return np.asarray(references) @ np.asarray(faces).T


def assign(cosines: np.ndarray) -> np.ndarray:
    """Maximum-weight matching of references and drawn faces on the cosine (the Hungarian matching of the UMO paper).

    As published, as many pairs as possible are made, even where a cosine is negative: min(M, N) of them.

    Args:
        cosines: (M, N), a row a reference, a column a drawn face; either may be 0. What is no matrix raises ValueError,
            a value that is not finite `NotFinite`.

    Returns:
        (M,) int, the face of each reference; -1 where none is left.
    """
    from scipy.optimize import linear_sum_assignment  # slow to load: not where a stage only reads its params

    cosines = np.asarray(cosines)
    if cosines.ndim != 2:
        raise ValueError(f"cosines must be a matrix (references, faces), not of shape {cosines.shape}")
    if not np.isfinite(cosines).all():
        raise NotFinite("cosines hold a value that is not finite: the pictures or the embeddings are broken")
    assignment = np.full(cosines.shape[0], NONE)
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    assignment[rows] = columns
    return assignment


def assigned_cosines(cosines: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """(M, N) cosines and (M,) assignment -> (M,) cosine of each reference's face; NaN where it has none."""
    found = np.full(len(assignment), np.nan)
    (rows,) = np.nonzero(assignment != NONE)
    found[rows] = cosines[rows, assignment[rows]]
    return found


def match(cosines: np.ndarray, same_person_cosine: float) -> Matching:
    """`assign`, then count who is there, missing, drawn twice or a stranger.

    Args:
        cosines: (M, N), a row a reference, a column a drawn face.
        same_person_cosine: two faces at or above it are the same person.
    """
    cosines = np.asarray(cosines)
    assignment = assign(cosines)
    covered = int((assigned_cosines(cosines, assignment) >= same_person_cosine).sum())
    left = np.setdiff1d(np.arange(cosines.shape[1]), assignment)
    duplicated = int((cosines[:, left] >= same_person_cosine).any(axis=0).sum())
    return Matching(assignment, covered, len(assignment) - covered, duplicated, len(left) - duplicated)


def doubled(cosines: np.ndarray, same_person_cosine: float) -> int:
    """Faces beyond the first of each person: those whose most alike reference is the same person, assigned or not."""
    owners = cosines.argmax(axis=0)[cosines.max(axis=0) >= same_person_cosine]
    return len(owners) - len(np.unique(owners))
