"""Identity rewards: SIR and MIMR (arXiv 2509.06818, section 3, in the form of the released code), and ours; batched.

Cosines are padded to (B, M, N): a row a reference, a column a drawn face. `valid`, bool of the same shape, marks the
real entries; a sample may have any numbers of references and of faces. The matching is a constant: the gradient runs
through the cosines alone. A picture without a face has, by SIR and MIMR, reward exactly 0 and gradient exactly 0, as
released; by ours it costs as much as everybody being absent, and may have a gradient where they should be.
"""

from umo.reward_settings import Anchor, Ours
from umo.rewards.matching import Kind, MatchingReward, Reward, padded_cosines
from umo.rewards.mimr import assigned, mimr
from umo.rewards.ours import ours
from umo.rewards.sir import sir

__all__ = [
    "Anchor",
    "Kind",
    "MatchingReward",
    "Ours",
    "Reward",
    "assigned",
    "mimr",
    "ours",
    "padded_cosines",
    "sir",
]
