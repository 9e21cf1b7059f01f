"""What a model still knows of its task: its training loss on pictures of people whom it was not trained on."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from umo import flow
from umo.customizers.base import Customizer, seed_of, seeded_noise
from umo.customizers.buckets import training_size
from umo.customizers.references import fill
from umo.errors import WorkFailed
from umo.evaluation.cases import Case
from umo.images import require_image


def held_out_losses(customizer: Customizer, cases: Sequence[Case], root: Path, draws: int) -> dict[str, float]:
    """The flow-matching loss on the target of each case, given its prompt and references and the training guidance.

    It is the mean over `draws` sigmas, spread evenly over (0, 1). The noise depends on the case's id and the draw
    alone, so that models are compared on the same.

    Args:
        cases: those without a target are left out; of several photographs of a person the first is used.
        root: what their paths are relative to.
        draws: at least 1; they go through the network at once.

    Returns:
        case_id -> loss, a mean square; 0 is a model that knows the target.

    Raises:
        BadInput: a picture cannot be read, or has more people than the base takes.
        WorkFailed: a loss is not finite.
    """
    sigmas = (torch.arange(draws, device=customizer.device) + 0.5) / draws
    with_target = [case for case in cases if case.target]
    bar = tqdm(with_target, desc=f"held-out loss of {customizer.name}", unit="case")
    return {case.case_id: _loss(customizer, case, root, sigmas) for case in bar}


@torch.no_grad()
def _loss(customizer: Customizer, case: Case, root: Path, sigmas: Tensor) -> float:
    names = [photos[0] for photos in case.references]
    references = [require_image(root / name, f"case {case.case_id}: reference {root / name}") for name in names]
    path = root / str(case.target)
    picture = require_image(path, f"case {case.case_id}: target {path}")
    size = training_size(customizer.settings, len(references), lambda: (len(picture), len(picture[0])))
    target = fill(picture, size)
    draws = len(sigmas)
    x0 = customizer.encode(target[None].to(customizer.device)).repeat(draws, 1, 1, 1)
    condition = customizer.condition([case.prompt], [references], customizer.settings.training_guidance)
    condition = condition.take([0] * draws)
    noise = seeded_noise(customizer, [seed_of(case.case_id, "held out", draw) for draw in range(draws)], size)
    loss = float(flow.loss(lambda x, sigma: customizer.velocity(x, sigma, condition), x0, noise, sigmas))
    if not math.isfinite(loss):
        raise WorkFailed(
            f"{customizer.name}: its loss on case {case.case_id} is not finite; check the base's and the LoRA's weights"
        )
    return loss
