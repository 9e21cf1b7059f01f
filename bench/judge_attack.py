"""What a picture gains under the judge that was changed to please the reward: twenty steps along the reward's gradient.

Each pixel changes by at most `levels` of 255: by 2 nobody sees it, by 8 anybody does. Beside it, what the shared finder
costs: pictures without a face, changed until YuNet, which rewards too, believes in one, and how often the judge does.
"""

import cv2
import numpy as np
import torch

from bench.photos import portraits
from bench.result import Result
from umo import faces
from umo.faces.base import FaceModel
from umo.faces.opencv_zoo import OpenCVZoo

NAME = "judge-attack"
BAR = 0.1
STEPS = 20
LEVELS = (2, 4, 8)
STRIDES = (8, 16, 32)


def run(pairs: int = 8, grounds: int = 20) -> Result:
    """The judge's gain in cosine / the reward's, at 2 levels.

    Args:
        pairs: of people, one changed towards the other.
        grounds: pictures without a face.
    """
    reward, judge, photos = faces.load("opencv_zoo"), faces.load("dlib"), portraits()
    gains = {}
    for levels in LEVELS:
        both = []
        for pair in range(pairs):
            picture, other = photos[10 * pair], photos[10 * (39 - pair)]
            changed = towards(reward, picture, other, levels)
            both.append(
                [likeness(model, changed, other) - likeness(model, picture, other) for model in (reward, judge)]
            )
        gains[str(levels)] = dict(zip(("reward", "judge"), np.mean(both, axis=0).round(4).tolist(), strict=True))
    ratios = {levels: round(gain["judge"] / gain["reward"], 3) for levels, gain in gains.items()}
    yunet, seen = OpenCVZoo(runtime="torch", calibrated=False), []
    for number in range(grounds):
        picture = believed(yunet, number)
        seen.append([bool(yunet.detect([picture])[0]), bool(judge.detect([picture])[0])])
    only, confirmed = np.array(seen).T
    return Result(
        name=NAME,
        value=ratios[str(LEVELS[0])],
        unit="gain of cosine under the judge / under the reward",
        against="the network that the picture was changed to please",
        bar=BAR,
        lower_is_better=True,
        details={
            "pairs": pairs,
            "gains": gains,
            "ratios": ratios,
            "faces_of_the_finder_alone": {"made": int(only.sum()), "confirmed by the judge": int(confirmed.sum())},
        },
    )


def towards(reward: FaceModel, picture: np.ndarray, other: np.ndarray, levels: float) -> np.ndarray:
    found = [reward.detect([picture])[0][:1]]
    wanted = torch.from_numpy(reward.embed([other], [reward.detect([other])[0][:1]]))
    start = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    pixels = start.clone().requires_grad_()
    most = levels / 127.5
    for _ in range(STEPS):
        (gradient,) = torch.autograd.grad((reward.embed(pixels, found) * wanted).sum(), pixels)
        with torch.no_grad():
            moved = pixels + gradient.sign() * most / 8
            pixels.copy_(moved.clamp(start - most, start + most).clamp(-1, 1))
    return ((pixels.detach()[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()


def likeness(model: FaceModel, picture: np.ndarray, other: np.ndarray) -> float:
    vectors = [model.embed([one], [model.detect([one])[0][:1]]) for one in (picture, other)]
    return float((vectors[0] @ vectors[1].T).item())


def believed(yunet: OpenCVZoo, number: int) -> np.ndarray:
    """A smooth ground of 96 px, changed along YuNet's gradient until it is surest."""
    noise = np.random.default_rng(number).integers(60, 200, (6, 6, 3), dtype=np.uint8)
    ground = cv2.resize(noise, (96, 96), interpolation=cv2.INTER_CUBIC)
    pixels = torch.from_numpy(ground).permute(2, 0, 1)[None].float().requires_grad_()
    for _ in range(STEPS):
        outputs = yunet._detector.torch(pixels.flip(1))
        sure = [(outputs[f"cls_{s}"].clamp(1e-4, 1) * outputs[f"obj_{s}"].clamp(1e-4, 1)).sqrt() for s in STRIDES]
        (gradient,) = torch.autograd.grad(torch.cat(sure, 1).flatten().topk(3).values.sum(), pixels)
        with torch.no_grad():
            pixels.copy_((pixels + 6 * gradient.sign()).clamp(0, 255))
    return pixels.detach()[0].permute(1, 2, 0).round().byte().numpy()
