"""The user's own insightface pack (a detector and a recogniser as ONNX): insightface runs it for arrays, torch rewards.

insightface ships no model, and nothing is downloaded here: antelopev2 and buffalo_l are for non-commercial research
only, so the user decides and puts the folder there. A recogniser alone (one ONNX file) reads the faces that the judge
finds. Cosines are the network's own: calibrate it once with
`umo calibrate PHOTOS.csv --faces PACK --out PACK/insightface.calibration.json` (of a file: beside it, with its name).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import cv2
import numpy as np

from umo import faces
from umo.errors import BadInput
from umo.faces.align import CROP, TEMPLATE, crops_of, landmarks_of, similarity
from umo.faces.base import Face
from umo.faces.calibration import load_calibration
from umo.faces.network import Network
from umo.faces.pixels import is_tensor, to_uint8, unit

if TYPE_CHECKING:
    from torch import Tensor

    from umo.faces.base import FaceModel

PACK_VARIABLE = "UMO_INSIGHTFACE_PACK"
DEFAULT_PACK = "antelopev2"
FINDERS = ("opencv_zoo", "dlib")  # of faces for a recogniser alone


class InsightFace:
    """See `umo.faces.base.FaceModel`. A tensor is rounded to bytes to find faces, and not to embed them.

    Args:
        pack: a folder of ONNX files, the name of one in ROOT/models, or a recogniser's file; by default what the
            environment variable UMO_INSIGHTFACE_PACK says, or antelopev2.
        root: where insightface keeps its models.
        detector: "pack" is the pack's own; "opencv_zoo" or "dlib" serve a pack that has only a recogniser. By default
            the pack's where it is a folder, and dlib's, which leaning heads do not escape, for a file.
        min_score: of the pack's own detector, in [0, 1].
        device: cpu, cuda, cuda:1, ...; CUDA needs onnxruntime-gpu.
        calibrated: false leaves `same_person_cosine` undefined (nan).
        calibration: a file of `umo calibrate`, instead of the pack's own.
        named: whether its name is the folder's or the file's, so that several packs can judge side by side.
    """

    licence = "the pack's own (antelopev2, buffalo_l: non-commercial research only)"

    def __init__(
        self,
        pack: str | Path | None = None,
        root: str | Path = "~/.insightface",
        detector: str | None = None,
        min_score: float = 0.5,
        device: str = "cpu",
        calibrated: bool = True,
        calibration: Path | None = None,
        named: bool = False,
    ) -> None:
        chosen = pack or os.environ.get(PACK_VARIABLE) or DEFAULT_PACK
        alone = Path(chosen).suffix == ".onnx"
        detector = detector or ("dlib" if alone else "pack")
        if detector not in ("pack", *FINDERS):
            raise BadInput(f"detector {detector!r}: one of pack, {', '.join(FINDERS)} is needed")
        place = Path(chosen).expanduser() if alone else _pack_folder(chosen, Path(root).expanduser())
        self.name = place.stem if named else "insightface"
        self._detector: Any = None
        self._other: FaceModel | None = None
        if detector == "pack":
            self._detector, self._recogniser = _load_pack(place, min_score, device)
            finder = Path(self._detector.model_file)
        else:
            self._recogniser = _load_recogniser([place] if alone else sorted(place.glob("*.onnx")), place, device)
            self._other = faces.load(detector, calibrated=False, device=device)
            finder = self._other.files[0]
        self.embedder = Path(self._recogniser.model_file)
        self.files: tuple[Path, ...] = (finder, self.embedder)
        found = None
        if calibrated:
            own = place.with_suffix(".calibration.json") if alone else place / "insightface.calibration.json"
            found = load_calibration(calibration or own, (self.embedder,))
        self.calibration, self.same_person_cosine = found, found.same_person_cosine if found else nan
        self._network = Network(self.embedder, threads=0)
        side = int(self._recogniser.input_size[0])
        self._side = side
        # insightface's rule for networks that read 112 k px, or 128 k px with a margin of 8 k left and right.
        margin = [8.0 * side / 128, 0.0]
        self._template = TEMPLATE * (side / CROP) if side % CROP == 0 else TEMPLATE * (side / 128) + margin
        self.dimension = int(self._recogniser.get_feat(np.zeros((side, side, 3), np.uint8)).shape[-1])

    @property
    def differentiable(self) -> bool:
        """True.

        Raises BadInput for a recogniser with an operation that `OnnxTorch` does not know.
        """
        return self._network.torch is not None

    def detect(self, images: Sequence[np.ndarray] | Tensor) -> list[list[Face]]:
        """Faces of each picture, the most certain first; scores in [min_score, 1]."""
        if self._other is not None:
            return self._other.detect(images)
        pictures = to_uint8(images) if is_tensor(images) else images
        return [self._detect(picture) for picture in pictures]

    @overload
    def embed(self, images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]) -> np.ndarray: ...

    @overload
    def embed(self, images: Tensor, faces: Sequence[Sequence[Face]]) -> Tensor: ...

    def embed(self, images: Sequence[np.ndarray] | Tensor, faces: Sequence[Sequence[Face]]) -> np.ndarray | Tensor:
        """Unit vectors (n, d); the landmarks place the crop, the box is not read.

        float32; float64 of a tensor in float64, which torch embeds as it is: insightface rounds its crops to bytes.
        """
        if is_tensor(images):
            return self._embed_tensor(images, faces)
        vectors = [self._describe(picture, found) for picture, found in zip(images, faces, strict=True)]
        return unit(np.concatenate([np.zeros((0, self.dimension), np.float32), *vectors]))

    def _embed_tensor(self, images: Tensor, faces: Sequence[Sequence[Face]]) -> Tensor:
        import torch

        images = images if images.dtype == torch.float64 else images.float()
        crops = crops_of((images + 1) * 127.5, faces, self._template, self._side)
        if not len(crops):
            return images.new_zeros((0, self.dimension))
        return self._network.embed((crops - self._recogniser.input_mean) / self._recogniser.input_std)

    def _detect(self, picture: np.ndarray) -> list[Face]:
        boxes, landmarks = self._detector.detect(np.ascontiguousarray(picture[..., ::-1]), max_num=0)
        order = np.argsort(-boxes[:, 4], kind="stable")
        return [Face(boxes[i, :4].astype("f4"), landmarks[i].astype("f4"), float(boxes[i, 4])) for i in order]

    def _describe(self, picture: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
        """(n, d), as `insightface.utils.face_align.norm_crop` and `ArcFaceONNX.get_feat` give them.

        The transform is ours: the same least squares, without scikit-image's deprecated call. The normalisation is
        insightface's: 0..255 for a network that begins with Sub and Mul, [-1, 1] for the others.
        """
        bgr = np.ascontiguousarray(picture[..., ::-1])
        side = self._side
        matrices = similarity(landmarks_of(faces), self._template)
        crops = [cv2.warpAffine(bgr, matrix, (side, side), borderValue=0.0) for matrix in matrices]
        vectors = [self._recogniser.get_feat(crop).ravel() for crop in crops]
        return np.array(vectors, np.float32).reshape(-1, self.dimension)


def _pack_folder(pack: str | Path, root: Path) -> Path:
    folder = Path(pack).expanduser()
    if not folder.is_dir():
        folder = root / "models" / str(pack)
    if not any(folder.glob("*.onnx")):
        raise BadInput(
            f"{folder}: no insightface pack (*.onnx) is there and none is downloaded: put the pack's files into this "
            "folder, or name yours by UMO_INSIGHTFACE_PACK (antelopev2 and buffalo_l: non-commercial use only)"
        )
    return folder


def _load_pack(folder: Path, min_score: float, device: str) -> tuple[Any, Any]:
    """Detector and recogniser through `insightface.app.FaceAnalysis`."""
    app, wanted, providers = _import_insightface(), ["detection", "recognition"], _providers(device)
    try:
        analysis = app.FaceAnalysis(str(folder), allowed_modules=wanted, providers=providers)
        analysis.prepare(ctx_id=_index(device), det_thresh=min_score)
    except AssertionError as error:
        raise BadInput(f"{folder}: the pack has no detector: add one, or choose detector='opencv_zoo'") from error
    except Exception as error:
        raise BadInput(f"{folder}: insightface cannot load this pack ({_line(error)}): copy it again") from error
    if "recognition" not in analysis.models:
        raise BadInput(f"{folder}: the pack has no recogniser: copy it again")
    return analysis.det_model, analysis.models["recognition"]


def _load_recogniser(paths: Sequence[Path], place: Path, device: str) -> Any:
    """The first recogniser among files through `insightface.model_zoo`."""
    zoo, providers = _import_insightface().face_analysis.model_zoo, _providers(device)
    for path in paths:
        try:
            model = zoo.get_model(str(path), providers=providers)
        except Exception as error:
            raise BadInput(f"{path}: insightface cannot load this file ({_line(error)}): copy it again") from error
        if model is not None and model.taskname == "recognition":
            model.prepare(ctx_id=_index(device))
            return model
    raise BadInput(f"{place}: the pack has no recogniser: copy it again")


def _providers(device: str) -> list[str]:
    """Of onnxruntime.

    Raises BadInput where CUDA is asked for and onnxruntime has none.
    """
    import onnxruntime

    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise BadInput(f"--device {device}: onnxruntime has no CUDA here: pip install onnxruntime-gpu, or choose cpu")
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _index(device: str) -> int:
    """insightface's number of a device: -1 is the CPU."""
    return -1 if device == "cpu" else int(device.partition(":")[2] or 0)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _import_insightface() -> Any:
    try:
        import insightface.app
    except ImportError as error:
        raise BadInput(f"insightface cannot be imported ({error}): pip install insightface==2.1") from error
    return insightface.app
