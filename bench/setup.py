"""What the benches of training start from: the base, the recipe and the sets of params.yaml, as `train` takes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core import products
from pipelines.core.bases import chosen, weights_digest
from pipelines.core.keys import sources
from pipelines.core.params import load
from pipelines.core.shards import WORK, digest, file_digest, tree_digest
from pipelines.train import stage as train
from umo import customizers, faces
from umo.customizers import Customizer
from umo.errors import BadInput
from umo.rewards import MatchingReward
from umo.training.reading import open_sets
from umo.training.recipe import Recipe
from umo.training.samples import Sample

SCRATCH = WORK / "bench"


@dataclass(frozen=True)
class Setup:
    """
    Attributes:
        load_base: gives the base afresh, without the LoRA that an earlier run has put on it.
        reward: MIMR with the recipe's weights.
        recipe: of the base.
        train, validation: the exported sets; nobody is in both.
        encoded: folder of encoded samples.
        scratch: folder for what a killed bench need not do again.
        fingerprint: of all that a training's outcome depends on beside its recipe, and of the code that judges it.
    """

    load_base: Callable[[], Customizer]
    reward: MatchingReward
    recipe: Recipe
    train: Sequence[Sample]
    validation: Sequence[Sample]
    encoded: Path
    scratch: Path
    fingerprint: str


def from_params() -> Setup:
    """The setup of params.yaml.

    Raises:
        BadInput: the chosen base has no recipe, or there are no exported sets.
    """
    base, params = chosen(), load("train")
    assert isinstance(params, train.Params)
    if (recipe := base.train) is None:
        raise BadInput(f"params.yaml: bases.{params.base} has no recipe: add bases.{params.base}.train")
    device = load("machine").model_dump()["device"]
    model = faces.load(params.reward)
    sets = open_sets(str(products.EXPORTED))
    modules = sorted({*sources("umo.training.trainer"), *sources("umo.evaluation.scoring")})
    code = [file_digest(path) for path in modules]
    return Setup(
        load_base=lambda: customizers.load(base.folder, base.lora, device, base.dtype),
        reward=MatchingReward(model, "mimr", recipe.lambda_match, recipe.lambda_mismatch),
        recipe=recipe,
        train=sets["train"],
        validation=sets["validation"],
        encoded=train.encoded_folder(base, params),
        scratch=SCRATCH,
        fingerprint=digest(weights_digest(base), tree_digest(products.EXPORTED), params.reward, code),
    )


def varied(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe with some knobs turned, checked as a whole; it neither validates nor averages, and so stays live."""
    fixed = {"validate_every": 0, "patience": 0, "ema": 0.0}
    return Recipe.model_validate(recipe.model_dump() | fixed | changes)


def faithful(recipe: Recipe, **changes: Any) -> Recipe:
    """Algorithm 1 of the paper at a recipe's other knobs: a rollout from noise for every update."""
    return varied(recipe, rollout_start="noise", updates_per_rollout=1, **changes)
