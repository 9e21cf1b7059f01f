"""Face models by name. `load` imports an adapter when it is asked for, so that nobody needs the others' packages."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from umo.errors import BadInput
from umo.faces.base import Face, FaceModel

__all__ = ["MODELS", "Face", "FaceModel", "load", "load_named", "load_reward"]


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


def load(name: str, **options: Any) -> FaceModel:
    """A face model by its key in `MODELS`; the same name and (hashable) options give the same object again.

    Raises BadInput for an unknown name or a missing weight file.
    """
    if name not in MODELS:
        raise BadInput(f"no face model {name!r}: choose one of {', '.join(MODELS)}")
    return _load(name, **options)


def load_named(name: str, device: str = "cpu", **options: Any) -> FaceModel:
    """A face model as commands take it: a key in `MODELS`, insightface's or CVLface's folder, or a recogniser's file.

    Args:
        device: where its networks run, for arrays and tensors.
        options: as `load`; None is as good as left out.

    Raises BadInput where there is no such model, or the calibration is another network's.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if device != "cpu":
        given["device"] = device
    if name in MODELS:
        return load(name, **given)
    if not Path(name).exists():
        known = ", ".join(MODELS)
        raise BadInput(f"no face model {name!r}: choose one of {known}, an insightface folder, or a recogniser's file")
    from umo.faces import checkpoint  # with torch

    if checkpoint.is_checkpoint(Path(name)):
        return _checkpoint(Path(name), **given)
    return load("insightface", pack=name, named=True, **given)


def load_reward(name: str, gradient: bool) -> FaceModel:
    """A face model that rewards, by a name that `load_named` takes; it needs no calibration.

    Raises BadInput where there is no such model, or it has no gradient and that is needed.
    """
    model = load(name) if name in MODELS else load_named(name, calibrated=False)
    if gradient and not model.differentiable:
        raise BadInput(
            f"reward {name} has no gradient, which rerefl needs: choose another face model, or objective: nft or grpo"
        )
    return model


@cache
def _checkpoint(path: Path, **options: Any) -> FaceModel:
    from umo.faces.checkpoint import Checkpoint

    return Checkpoint(path, **options)


@cache
def _load(name: str, **options: Any) -> FaceModel:
    return MODELS[name](**options)
