"""`python -m bench.gpu --size flux1`: speed and peak memory of a ReReFL update at a published base's real size.

Weights, pictures and text embeddings are random, so nothing is downloaded; the losses are those of `umo.training`. An
update is one sample with two references on one device, as the paper's eight devices have one each. Random pictures
show no faces: the detector looks at them, and the embedder is then given two fixed faces.

Every cell of the table starts from nothing. Target and references are encoded once, as training does; text is random,
so no text encoder is in any cell. Beside each peak stands what `umo plan` estimates.
"""

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler

from bench.result import machine
from bench.timing import Stopwatch
from umo import devices, faces
from umo.customizers.base import Settings
from umo.customizers.condition import REFERENCE, Condition
from umo.customizers.flux2 import KLEIN_BASE
from umo.customizers.flux_uno import FLUX
from umo.customizers.qwen_edit import QWEN
from umo.errors import BadInput
from umo.faces import Face
from umo.faces.align import CROP, TEMPLATE
from umo.planning.bases import Base, find
from umo.planning.memory import GIB, Switches, Work, estimate
from umo.rewards import MatchingReward
from umo.training.draws import draw_randomness
from umo.training.objectives.base import diffusion_loss
from umo.training.objectives.rerefl import drawn, late_latents
from umo.training.recipe import Recipe
from umo.training.samples import Batch

REFERENCES = 2
UPDATES = 10  # as many as there are late steps
PARTS = ("diffusion pass", "rollout", "reward pass", "optimizer")
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        base: its configurations.
        settings: of the family.
        scheduler: of the family.
        picture: the side of the picture in pixels.
        reference: the side of each reference in pixels.
        rank: of the LoRA.
    """

    base: Base
    settings: Settings
    scheduler: FlowMatchEulerDiscreteScheduler
    picture: int
    reference: int
    rank: int


_DYNAMIC = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
_QWEN = FlowMatchEulerDiscreteScheduler(
    use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
)
_FLUX1 = find("flux1")
_TOY = {
    "transformer": {
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    },
    "vae": _FLUX1.configs["vae"] | {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
}
SCALES = {
    "flux1": Scale(_FLUX1, FLUX, _DYNAMIC, picture=512, reference=FLUX.references_side, rank=512),
    "flux2-klein-4b": Scale(find("flux2-klein-4b"), KLEIN_BASE, _DYNAMIC, picture=1024, reference=1024, rank=64),
    "qwen-image-edit": Scale(find("qwen-image-edit"), QWEN, _QWEN, picture=1024, reference=1024, rank=128),
    "toy": Scale(Base("toy", _FLUX1.index, _TOY, {}), FLUX, _DYNAMIC, picture=64, reference=48, rank=4),
}


def build(scale: Scale, device: str) -> Any:
    """A base with random bfloat16 weights made on the device, frozen, without text encoders."""
    built: Any = scale.base.build({}, device)
    built.settings, built.scheduler = scale.settings, scale.scheduler
    return built


class Update:
    """One ReReFL update after the other, on one sample."""

    def __init__(self, scale: Scale, device: torch.device, checkpointing: bool, merged: bool) -> None:
        """
        Args:
            checkpointing: recompute activations in the backward pass.
            merged: lay the LoRA into the weights for the rollout.
        """
        torch.manual_seed(0)
        self.scale, self.device = scale, device
        self.recipe = Recipe(  # the paper's, for UNO
            steps=1,
            batch=1,
            rank=scale.rank,
            precision="bf16",
            checkpoint_gradients=checkpointing,
            merge_rollout=merged,
        )
        devices.prepare(device)
        self.customizer = build(scale, str(device))
        with torch.device(device):
            self.customizer.add_lora(self.recipe.rank)
        if self.recipe.checkpoint_gradients:
            self.customizer.checkpoint_gradients()
        self.weights = [weight for weight in self.customizer.transformer.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, self.recipe.learning_rate)
        self.reward = MatchingReward(faces.load("opencv_zoo"))
        self.target = _noise(1, 3, scale.picture, scale.picture, device=device).clamp(-1, 1)
        self.references = _noise(REFERENCES, 3, scale.reference, scale.reference, device=device).clamp(-1, 1)
        self.anchors = F.normalize(_noise(REFERENCES, self.reward.faces.dimension, device=device), dim=1)
        self.faces = given_faces(scale.picture)
        self.batch = self.encode()

    @torch.no_grad()
    def encode(self) -> Batch:
        """The sample as the network takes it."""
        references = [self.customizer.encode(reference[None])[0] for reference in self.references]
        (shapes,) = self.scale.base.condition(self.customizer, 0, self.scale.reference, batch=1).samples
        named = {name: _noise(*empty.shape, device=self.device) for name, empty in shapes.items()}
        named |= {f"{REFERENCE}{k}": latents for k, latents in enumerate(references)}
        return Batch(
            names=("random",),
            size=(self.scale.picture, self.scale.picture),
            condition=Condition((named,), (self.customizer.settings.training_guidance,)),
            target=self.customizer.encode(self.target),
            anchors=[self.anchors],
            places=[self.anchors.new_zeros(0, 5, 2)],
        )

    def __call__(self, step: int, watch: Stopwatch) -> float:
        """Update number `step`; returns its loss, L of Algorithm 1.

        The late steps come in turn instead of by chance: ten updates make rollouts of the mean length.
        """
        recipe, batch = self.recipe, self.batch
        merged = self.customizer.merged() if recipe.merge_rollout else nullcontext()
        draws = draw_randomness(recipe, batch.target.shape[1:], step, [0])
        late = recipe.gradient_first + step % (recipe.gradient_last - recipe.gradient_first + 1)
        time, noise, start = (numbers.to(batch.target) for numbers in (draws.time, draws.noise, draws.start))
        self.optimizer.zero_grad(set_to_none=True)
        with watch("diffusion pass"):
            with self._autocast():
                diffusion = diffusion_loss(self.customizer, batch, time, noise)
            (recipe.diffusion_weight * diffusion).backward()
        with watch("rollout"), self._autocast(), merged:
            latents, sigmas = late_latents(
                self.customizer, recipe.rollout_steps, range(late, late + 1), batch.size, batch.condition, start
            )
        with watch("reward pass"):
            with self._autocast():
                pictures = drawn(self.customizer, latents[0], sigmas[0], batch.condition).float()
            self.reward.faces.detect(pictures.detach())
            reward = self.reward(pictures, batch.anchors, [self.faces]).reward.mean()
            (-recipe.reward_weight * reward).backward()
        with watch("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.weights, recipe.max_gradient)
            self.optimizer.step()
        return float((recipe.diffusion_weight * diffusion - recipe.reward_weight * reward).detach())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, DTYPE)


def _noise(*shape: int, device: torch.device) -> torch.Tensor:
    """Drawn on the CPU, and so the same on every device."""
    return torch.randn(*shape).to(device)


def given_faces(side: int) -> list[Face]:
    """Two upright faces side by side in a square picture, each two fifths of its side."""
    width = 0.4 * side
    corners = [(0.05 * side, 0.3 * side), (0.55 * side, 0.3 * side)]
    return [
        Face(
            box=torch.tensor([x, y, x + width, y + width]).numpy(),
            landmarks=(TEMPLATE * width / CROP + [x, y]).astype("float32"),
            score=1.0,
        )
        for x, y in corners
    ]


@dataclass(frozen=True)
class Cell:
    """A row of the table.

    Attributes:
        seconds: of each part, a mean over the measured updates; empty where memory ran out.
        losses: of all updates, those of the warm-up first.
        peak: bytes of GPU memory at most; None without a GPU.
        planned: the same as `umo plan` estimates it, without its reserve.
    """

    checkpointing: bool
    merged: bool
    seconds: dict[str, float]
    losses: list[float]
    peak: int | None
    planned: int

    def row(self) -> str:
        """In Markdown."""
        head = ["on" if self.checkpointing else "off", "merged" if self.merged else "beside"]
        planned = f"{self.planned / GIB:.1f}"
        if not self.seconds:
            return _row([*head, *["out of memory"] + [""] * (len(PARTS) + 1), planned])
        seconds = [f"{self.seconds[part]:.3f}" for part in PARTS]
        peak = "not measured" if self.peak is None else f"{self.peak / GIB:.1f}"
        return _row([*head, *seconds, f"{1 / sum(self.seconds.values()):.3f}", peak, planned])


def measure(scale: Scale, device: torch.device, checkpointing: bool, merged: bool, updates: int) -> Cell:
    """One cell: an update that is not counted, then `updates` that are."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        update, watch = Update(scale, device, checkpointing, merged), Stopwatch(device)
        losses = [update(0, Stopwatch(device))] + [update(1 + step, watch) for step in range(updates)]
        seconds = {name: value / updates for name, value in watch.seconds.items()}
    except torch.OutOfMemoryError:
        seconds, losses = {}, []
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    work = Work((scale.picture, scale.picture), REFERENCES, scale.reference, merged=merged)
    planned = estimate(scale.base, work, Switches(scale.rank, checkpointing)).update
    return Cell(checkpointing, merged, seconds, losses, peak, planned)


def grid(scale: Scale, device: torch.device, updates: int = UPDATES) -> Iterator[Cell]:
    """Every cell of the table, each in memory that the one before has given back."""
    for checkpointing, merged in product((False, True), repeat=2):
        yield measure(scale, device, checkpointing, merged, updates)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def header(scale: Scale) -> str:
    """What is measured, and the table's head."""
    columns = ["gradient checkpointing", "LoRA in rollouts", *(f"{part}, s" for part in PARTS)]
    columns += ["updates/s", "peak memory, GiB", "planned, GiB"]
    what = (
        f"{machine()}. {scale.base.name}: one sample, {REFERENCES} references of {scale.reference} px, a picture of "
        f"{scale.picture} px, LoRA of rank {scale.rank}, bfloat16; seconds an update."
    )
    return "\n".join([what, "", _row(columns), _row(["---"] * len(columns))])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SCALES, required=True, help="toy runs everywhere, the others on a large GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    scale, device = SCALES[options.size], torch.device(options.device)
    if options.size != "toy" and device.type == "cpu":
        print(f"bench.gpu: {options.size} has billions of weights and needs a GPU: give --device cuda", file=sys.stderr)
        return BadInput.exit_code
    print(header(scale), flush=True)
    for cell in grid(scale, device):
        print(cell.row(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
