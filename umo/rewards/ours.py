"""Our reward: everybody who is asked for, once, and like other photographs of them; batched.

MIMR (arXiv 2509.06818) with what it lacks: a price on people who are absent, doubled or too many; a weight that does
not fade with their number; bounds beyond which nothing is pulled or pushed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from umo.matching import doubled
from umo.reward_settings import Ours
from umo.rewards.mimr import assigned, unpadded


def ours(
    cosines: Tensor,
    valid: Tensor,
    settings: Ours,
    stranger: float | None,
    ceiling: float | None,
    same_person_cosine: float,
) -> Tensor:
    """Reward (B,) of M people and N faces, at most `ceiling`, or 1:

    `1/M * (sum of worth over the assigned pairs - sum of push over the other faces
    - absent * max(0, M - N) - surplus * max(0, N - M) - doubled * faces beyond the first of a person)`.

    The worth of face j for reference k is `min(c_kj, ceiling) - push`; its push, `max(0, c - stranger)`, is by the most
    alike of the *other* references; that of a face without a reference is by the most alike of all. The assignment is
    the one with the largest reward, so that the reward is the same in any order. Faces whose most alike reference has a
    cosine of `same_person_cosine` or more are that person, assigned or not.

    Each person pulls with weight 1/M whatever N is (SIR 1/M, MIMR 1/(MN)), each confusion pushes with at most 1/M. A
    face contributes at least `-(2 - stranger) - doubled`: where `absent` costs more, leaving one out never pays.

    Args:
        settings: the costs, and whether to divide by M or by MN; the other parts are those given here.
        stranger, ceiling: cosines, or None for no such bound.

    A picture without a face has `-absent`. A valid cosine that is not finite raises ValueError.
    """
    known = F.pad(cosines.masked_fill(~valid, -torch.inf), (0, 0, 0, 1), value=-torch.inf)  # a single one has no second
    (best, second), (owner, _) = (part.unbind(dim=1) for part in known.topk(2, dim=1))
    own = F.one_hot(owner, known.shape[1]).transpose(1, 2)[:, :-1].bool()  # (B, M, N), a face's most alike reference
    alone = _push(best, stranger)
    pushes = torch.where(own, _push(second, stranger)[:, None], alone[:, None])
    gain = (cosines if ceiling is None else cosines.clamp(max=ceiling)) - pushes + alone[:, None]
    total = gain.where(assigned(gain, valid), 0).sum(dim=(1, 2)) - alone.sum(dim=1)
    total = total - _costs(cosines, valid, settings, same_person_cosine)
    people, faces = valid.any(dim=2).sum(dim=1), valid.any(dim=1).sum(dim=1)
    return total / (people if settings.per_person else people * faces).clamp(min=1)


def _costs(cosines: Tensor, valid: Tensor, settings: Ours, same_person_cosine: float) -> Tensor:
    """(B,), without gradient."""
    found = []
    for real in unpadded(cosines, valid):
        people, faces = real.shape if real.size else (1, 0)  # without a face M is not known, nor needed
        twice = doubled(real, same_person_cosine) if faces else 0
        absent, surplus = max(0, people - faces), max(0, faces - people)
        found.append(settings.absent * absent + settings.surplus * surplus + settings.doubled * twice)
    return cosines.new_tensor(found)


def _push(cosine: Tensor, stranger: float | None) -> Tensor:
    """0 where there is nobody, that is, at -inf."""
    if stranger is None:
        return cosine.masked_fill(cosine == -torch.inf, 0)
    return (cosine - stranger).relu()
