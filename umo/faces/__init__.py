"""Face models by name. `load` imports an adapter when it is asked for, so that nobody needs the others' packages."""

from collections.abc import Callable
from functools import cache
from typing import Any

from umo.errors import BadInput
from umo.faces.base import Face, FaceModel

__all__ = ["MODELS", "ON_DEVICES", "Face", "FaceModel", "load", "load_on"]


def _opencv_zoo(**options: Any) -> FaceModel:
    from umo.faces.opencv_zoo import OpenCVZoo

    return OpenCVZoo(**options)


def _dlib(**options: Any) -> FaceModel:
    from umo.faces.dlib import Dlib

    return Dlib(**options)


def _insightface(**options: Any) -> FaceModel:
    from umo.faces.insightface import InsightFace

    return InsightFace(**options)


MODELS: dict[str, Callable[..., FaceModel]] = {"opencv_zoo": _opencv_zoo, "dlib": _dlib, "insightface": _insightface}
ON_DEVICES = {"opencv_zoo"}  # can look at arrays elsewhere than on the CPU


def load(name: str, **options: Any) -> FaceModel:
    """A face model by its key in `MODELS`; the same name and (hashable) options give the same object again.

    Raises BadInput for an unknown name or a missing weight file.
    """
    if name not in MODELS:
        raise BadInput(f"no face model {name!r}: choose one of {', '.join(MODELS)}")
    return _load(name, **options)


def load_on(device: str, name: str) -> FaceModel:
    """`load`, with arrays looked at on a device (cpu, cuda, ...) where the adapter can; else on the CPU."""
    return load(name, device=device) if device != "cpu" and name in ON_DEVICES else load(name)


@cache
def _load(name: str, **options: Any) -> FaceModel:
    return MODELS[name](**options)
