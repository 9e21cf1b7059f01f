"""How a base is tuned: every knob of a run. Values per base stand in params.yaml beside those of the paper."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from umo.devices import Frozen, Kernel, Optimizer, Precision
from umo.guidance import Guidance
from umo.reward_settings import Anchor, Ours

Method = Literal["sft", "sir", "mimr", "ours"]
ObjectiveName = Literal["rerefl", "nft", "grpo"]
Positive = Annotated[float, Field(gt=0)]


class Recipe(BaseModel):
    """One base's training. "Paper" is arXiv 2509.06818; where it is silent the choice is ours.

    Attributes:
        steps: updates. Not in the paper.
        batch: samples an update, over all processes (paper: 8).
        micro_batch: samples that go through the network at once; a divisor of a process's share.
        learning_rate: paper 5e-6; reached after `warmup` updates.
        schedule: after them the learning rate stays (`constant`) or falls to 0 (`cosine`). Not in the paper.
        warmup: updates over which the learning rate rises in a line. Not in the paper.
        weight_decay: of AdamW. Not in the paper.
        max_gradient: norm to which the gradient is clipped. Not in the paper.
        ema: decay of the averaged weights, which are validated and saved, and which draw the pictures of `nft`; it is
            less while the average is young; 0 takes the last ones. Not in the paper.
        rank: of the LoRA, alpha the same (paper 512); that of the LoRA that the base has already, which is trained on.
        diffusion_weight: lambda of Algorithm 1 (paper 1).
        objective: how a reward moves the weights: `rerefl` (the paper), `nft` or `grpo`
            (`umo.training.objectives`); the method sft has none.
        reward_weight: of the reward (paper 1); of the loss that takes its place in `nft` and `grpo`.
        reward_ceiling: a reward above it counts as this much, and pulls no further; null has no ceiling. Not in the
            paper.
        velocity_kl: weight of the mean squared distance between the velocity and that of the frozen base, its LoRA
            off, at the inputs of the objective's own velocity: the KL of the two, but for a factor that depends on
            sigma. 0 leaves it out. Not in the paper.
        lambda_match, lambda_mismatch: of MIMR (paper 1, -1).
        anchor: what drawn faces are compared with (paper `references`, released code `target`).
        ours: the parts of our reward, each with a value that switches it off. Not in the paper.
        group_size: of `nft` and `grpo`: pictures that are drawn for each sample of the batch and compared with one
            another. DiffusionNFT and Flow-GRPO: 24.
        advantage_clip: of `nft` and `grpo`: standard deviations within a group beyond which a reward counts no more
            (5 in the code of both).
        beta: of `nft`: how far the implicit positive and negative policies lie from the sampling policy, towards and
            away from the trained one (DiffusionNFT: about 1 is stable, less learns faster).
        clip_range: of `grpo`: the ratio of probabilities is clipped to 1 - clip_range and 1 + clip_range; of the mean
            over all latents, so it is small (Flow-GRPO's code: 1e-4).
        sde_steps: of `grpo`: steps of a rollout that are drawn with noise and trained, one after the other, at a random
            place from gradient_last to gradient_first. Flow-GRPO trains all steps, MixGRPO 4.
        sde_noise: of `grpo`: a of Flow-GRPO (0.7), how much noise they have.
        rollout_steps: T (paper 25 for UNO, 50 for OmniGen2).
        gradient_first, gradient_last: Ts and Te; the step with gradient is drawn from them, 1 the last of the rollout
            (paper 1 and 10 for UNO, 1 and 20 for OmniGen2). `nft` has no such step.
        rollout_start: `noise` is Algorithm 1; `target` starts from the noised target at that very step, without a
            rollout.
        updates_per_rollout: updates made from one rollout, each at another of its late steps; 1 is Algorithm 1. `nft`
            and `grpo` take any number, and learn from all of a rollout's pictures in each.
        gradient_steps: of `rerefl`: Euler steps with gradient, from there to the picture. 1 is Algorithm 1; 2 is the
            two-step trajectory of LeapAlign (arXiv 2604.15311), without its rollout to the end, weights and discount of
            the nested gradient: the second starts half as many steps from the end. The reward reaches early steps where
            `gradient_first` and `gradient_last` do; the activations of two forwards are held.
        reward_picture: of `rerefl`: what the reward sees. `predicted` is Algorithm 1: the picture that the step with
            gradient points to. `rollout` is the rollout's own end, sharp whatever the step, which the gradient passes
            straight through (FlowBP, arXiv 2606.11075: of cached latents some go forward again, here one, and as far
            as the picture instead of its own step).
        rollout_guidance: of the rollout, a number or `{text: 5, image: 2}` (`umo.guidance`); null takes what the base
            was trained with. Not in the paper.
        gradient_guidance: of its step with gradient; null takes the rollout's. 1 is the conditional branch alone, which
            saves classifier-free guidance's second forward there. Not in the paper.
        time: of the diffusion loss: `logit_normal` sigmas, or `uniform` ones, out of 1,000 shifted by exp(time_mu), as
            UNO is trained. Not in the paper.
        time_mean, time_std: of the logit-normal sigma, before any shift: that of a schedule, by s, is a mean larger by
            log s.
        time_mu: of the uniform sigma; FLUX.1's line has 0.63 at 512x512 pixels.
        text_dropout: share of the samples whose prompt is replaced by the base's negative one (an empty one, where it
            says no other), in both losses. Not in the paper.
        weights: how the frozen transformer is stored: `full`, as `precision` says; `fp8`, in 8 bits, each layer cast
            while it computes (saves memory with checkpoint_gradients only); `int8` and `nf4`, by bitsandbytes on a GPU.
            Not in the paper.
        optimizer: `adamw`, or bitsandbytes' `adamw8bit`, whose state has 8 bits a number. Not in the paper.
        precision: bf16 keeps the frozen weights in bf16 and computes under autocast; the LoRA stays float32.
        checkpoint_gradients: recompute activations of transformer and decoder in the backward pass: less memory, one
            more forward.
        attention: PyTorch's kernel for it: `flash` (neither padded prompts nor fp32 on CUDA), `efficient` or `math`;
            null lets PyTorch choose at every call, but for cuDNN's on CUDA, whose backward pass fails.
        merge_rollout: lay the LoRA into the weights for rollouts and validation, which have no gradient: each forward
            costs the base's alone, and those weights lie in memory twice. In bf16 what the LoRA adds is rounded.
        compile_blocks: compile the transformer's blocks: minutes at the start and for every new shape, faster then.
        checkpoint_every, keep: updates between checkpoints, and how many are kept.
        validate_every: updates between validations, of which one follows the last update; 0 never validates.
        validation_samples: of the validation people, at most.
        patience: validations without a better reward after which a run with a reward stops; 0 never does.
        seed: of everything drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1)
    batch: int = Field(default=8, ge=1)
    micro_batch: int = Field(default=8, ge=1)
    learning_rate: Positive = 5e-6
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient: Positive = 1.0
    ema: float = Field(default=0.0, ge=0, lt=1)
    rank: int = Field(default=512, ge=1)
    diffusion_weight: float = Field(default=1.0, ge=0)
    objective: ObjectiveName = "rerefl"
    reward_weight: float = Field(default=1.0, ge=0)
    reward_ceiling: float | None = None
    velocity_kl: float = Field(default=0.0, ge=0)
    lambda_match: float = 1.0
    lambda_mismatch: float = -1.0
    anchor: Anchor = "references"
    ours: Ours = Ours()
    group_size: int = Field(default=8, ge=1)
    advantage_clip: Positive = 5.0
    beta: Positive = 1.0
    clip_range: Positive = 1e-4
    sde_steps: int = Field(default=1, ge=1)
    sde_noise: Positive = 0.7
    rollout_steps: int = Field(default=25, ge=1)
    gradient_first: int = Field(default=1, ge=1)
    gradient_last: int = Field(default=10, ge=1)
    rollout_start: Literal["noise", "target"] = "noise"
    updates_per_rollout: int = Field(default=1, ge=1)
    gradient_steps: Literal[1, 2] = 1
    reward_picture: Literal["predicted", "rollout"] = "predicted"
    rollout_guidance: Guidance | None = None
    gradient_guidance: Guidance | None = None
    time: Literal["logit_normal", "uniform"] = "logit_normal"
    time_mean: float = 0.0
    time_std: Positive = 1.0
    time_mu: float = 0.0
    text_dropout: float = Field(default=0.0, ge=0, lt=1)
    weights: Frozen = "full"
    optimizer: Optimizer = "adamw"
    precision: Precision = "fp32"
    checkpoint_gradients: bool = False
    attention: Kernel | None = None
    merge_rollout: bool = False
    compile_blocks: bool = False
    checkpoint_every: int = Field(default=50, ge=1)
    keep: int = Field(default=2, ge=1)
    validate_every: int = Field(default=0, ge=0)
    validation_samples: int = Field(default=32, ge=1)
    patience: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.gradient_first <= self.gradient_last <= self.rollout_steps:
            raise ValueError("gradient_first <= gradient_last <= rollout_steps must hold")
        window = self.gradient_last - self.gradient_first + 1
        if self.objective == "rerefl" and self.updates_per_rollout > window:
            raise ValueError("updates_per_rollout must not exceed the number of steps that may have a gradient")
        if self.checkpoint_every % self.updates_per_rollout:
            raise ValueError("checkpoint_every must be a multiple of updates_per_rollout")
        if self.objective != "rerefl":
            self._fits_groups(window)
        if self.reward_picture == "rollout" and self.rollout_start == "target":
            raise ValueError("reward_picture: rollout needs rollout_start: noise")
        if self.patience and not self.validate_every:
            raise ValueError("patience needs validate_every")
        return self

    def _fits_groups(self, window: int) -> None:
        if self.group_size < 2:
            raise ValueError(f"{self.objective} compares the pictures of a group: group_size must be at least 2")
        if self.rollout_start == "target":
            raise ValueError(f"{self.objective} draws whole pictures: rollout_start must be noise")
        if self.objective == "grpo" and self.sde_steps > window:
            raise ValueError("sde_steps must not exceed the number of steps from gradient_first to gradient_last")
        if self.objective == "grpo" and self.gradient_first < 2:
            raise ValueError("grpo needs gradient_first of at least 2: the last step's noise would stay in the picture")

    def through_reward(self, method: Method) -> bool:
        """Whether a method's gradient goes through the reward, which must have one."""
        return method != "sft" and self.objective == "rerefl"

    def anchor_of(self, method: Method) -> Anchor:
        """What a method compares drawn faces with."""
        return self.ours.anchor or self.anchor if method == "ours" else self.anchor
