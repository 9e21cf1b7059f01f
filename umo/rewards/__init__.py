"""Identity rewards of UMO: SIR and MIMR (arXiv 2509.06818, section 3, in the form of the released code), batched.

Cosines are padded to (B, M, N): a row a reference, a column a drawn face. `valid`, bool of the same shape, marks the
real entries; a sample may have any numbers of references and of faces. The matching is a constant: the gradient runs
through the cosines alone. A picture without a face has reward exactly 0 and gradient exactly 0, as released.
"""

from umo.rewards.matching import Anchor, Kind, MatchingReward, Reward, padded_cosines
from umo.rewards.mimr import assigned, mimr
from umo.rewards.sir import sir

__all__ = ["Anchor", "Kind", "MatchingReward", "Reward", "assigned", "mimr", "padded_cosines", "sir"]
