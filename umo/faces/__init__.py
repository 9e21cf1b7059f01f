"""Face models by name. `load` imports an adapter when it is asked for, so that nobody needs the others' packages."""

from collections.abc import Callable
from functools import cache
from typing import Any

from umo.errors import BadInput
from umo.faces.base import Face, FaceModel

__all__ = ["MODELS", "Face", "FaceModel", "load"]


def _opencv_zoo(**options: Any) -> FaceModel:
    from umo.faces.opencv_zoo import OpenCVZoo

    return OpenCVZoo(**options)


def _dlib(**options: Any) -> FaceModel:
    from umo.faces.dlib import Dlib

    return Dlib(**options)


def _insightface(**options: Any) -> FaceModel:
    from umo.faces.insightface import InsightFace

    return InsightFace(**options)


MODELS: dict[str, Callable[..., FaceModel]] = {
    "opencv_zoo": _opencv_zoo,
    "dlib": _dlib,
    "insightface": _insightface,
}


def load(name: str, **options: Any) -> FaceModel:
    """A face model; the same name and options give the same object again.

    Args:
        name: a key of `MODELS`.
        options: of the adapter's class; they must be hashable.

    Raises:
        BadInput: the name is unknown, or a weight file is missing.
    """
    if name not in MODELS:
        raise BadInput(f"no face model {name!r}: choose one of {', '.join(MODELS)}")
    return _load(name, **options)


@cache
def _load(name: str, **options: Any) -> FaceModel:
    return MODELS[name](**options)
