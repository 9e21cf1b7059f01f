"""What an update of ReReFL holds on a card, part by part, and at which moment most."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from umo.customizers.base import Size
from umo.customizers.frozen import cast_storage, stored_bytes
from umo.devices import Frozen, Optimizer
from umo.planning.bases import Base
from umo.planning.counting import Live, NewLora, count_pass, give_gradients

GIB = 2**30
# Allowed for, not counted: CUDA's context (about half a GiB), the workspaces of cuBLAS and cuDNN, and what the
# allocator loses between blocks. An assumption; `torch.cuda.max_memory_allocated` is without it.
RESERVE = int(1.25 * GIB)
# OpenCV Zoo's detector and recogniser in float32, and what autograd keeps of a face (39 MiB, counted on a CPU).
FACE_NETWORKS, FACE = 38 * 2**20, 39 * 2**20
RANKS = 64, 128  # that are counted


@dataclass(frozen=True)
class Switches:
    """What a training may be set to; the names are a recipe's, but for `checkpointing`, its `checkpoint_gradients`."""

    rank: int = 512
    checkpointing: bool = False
    weights: Frozen = "full"
    optimizer: Optimizer = "adamw"


@dataclass(frozen=True)
class Work:
    """What an update has to do.

    Attributes:
        size: height and width of the picture.
        references: of a sample.
        side: of a reference in pixels.
        batch: samples that go through the network at once.
        averaged, best: whether the recipe averages weights (`ema`), and keeps the best (`validate_every`).
        merged: whether the LoRA is laid into the weights for the rollout (`merge_rollout`).
    """

    size: Size
    references: int
    side: int
    batch: int = 1
    averaged: bool = False
    best: bool = False
    merged: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of each part.

    Attributes:
        transformer, autoencoder, lora, gradients, optimizer, copies, faces: held all along an update; `copies` are the
            averaged and the best weights, `faces` the networks of the reward.
        diffusion_pass, rollout, reward_pass, optimizer_step: beside them at most in each part of an update:
            activations, and what is computed on the way.
        text_encoders: freed before the first update.
        loaded_early: of the transformer, beside them.
    """

    transformer: int
    autoencoder: int
    lora: int
    gradients: int
    optimizer: int
    copies: int
    faces: int
    diffusion_pass: int
    rollout: int
    reward_pass: int
    optimizer_step: int
    text_encoders: int
    loaded_early: int
    reserve: int = RESERVE

    @property
    def held(self) -> int:
        """All along an update."""
        lora = self.lora + self.gradients + self.optimizer + self.copies
        return self.transformer + self.autoencoder + lora + self.faces

    @property
    def update(self) -> int:
        """Allocated at most in an update."""
        return self.held + max(self.diffusion_pass, self.rollout, self.reward_pass, self.optimizer_step)

    @property
    def encoding(self) -> int:
        """Allocated at most while samples are encoded: before the first update, with the transformer not there yet."""
        return self.text_encoders + self.autoencoder + self.faces + self.loaded_early

    @property
    def needed(self) -> int:
        """Of a card."""
        return max(self.update, self.encoding) + self.reserve


class Counted(NamedTuple):
    """Bytes of the transformer and of what trains on it, of one depth.

    Attributes:
        stored: frozen weights as they are.
        int8, nf4: the same quantised.
        merged: of them, those of layers with a LoRA that can be laid into them.
        largest: what its largest layer has in full, which bitsandbytes has to make of its own form.
        lora: weights.
        kept: after a forward pass, for its backward pass.
        peak: in both, beside weights and gradients.
    """

    stored: int
    int8: int
    nf4: int
    merged: int
    largest: int
    lora: int
    kept: int
    peak: int


def estimate(base: Base, work: Work, switches: Switches) -> Memory:
    """Without loading or downloading anything. Raises BadInput as `Base.build` does."""
    passes = replace(work, averaged=False, best=False, merged=False)  # the same with and without: counted once
    counted = _count(base, passes, switches.rank, switches.checkpointing, switches.weights == "fp8")
    quantised = {"int8": counted.int8, "nf4": counted.nf4}.get(switches.weights)
    peak = counted.peak + (counted.largest if quantised else 0)
    autoencoder, decoded = _count_decoder(base, passes, switches.checkpointing)
    eight_bit = switches.optimizer == "adamw8bit"
    found = work.batch * work.references  # as many faces as people
    return Memory(
        transformer=quantised or counted.stored,
        autoencoder=autoencoder,
        lora=counted.lora,
        gradients=counted.lora,
        # Two numbers a weight: float32, or 8 bits and a float32 scale for 256 of them.
        optimizer=int(counted.lora / 4 * (2 * (1 + 4 / 256) if eight_bit else 8)),
        copies=counted.lora * (work.averaged + work.best),
        faces=FACE_NETWORKS,
        diffusion_pass=peak,
        # Weights with the LoRA in them stand beside those without; a forward takes no more than a backward does.
        rollout=(counted.merged if work.merged and not quantised else 0) + peak - counted.kept,
        # The autoencoder has freed its own before the transformer's backward pass begins.
        reward_pass=max(counted.kept + decoded + found * FACE, peak),
        # torch's AdamW takes the root of all second moments at once on CUDA; bitsandbytes goes weight by weight.
        optimizer_step=0 if eight_bit else counted.lora,
        text_encoders=2 * base.encoders,
        loaded_early=quantised or 0,  # bitsandbytes quantises on the card
    )


def _count(base: Base, work: Work, rank: int, checkpointing: bool, fp8: bool) -> Counted:
    """All but what the base itself holds is in proportion to the rank, so two ranks tell all."""
    less, more = (_count_rank(base, work, one, checkpointing, fp8=False) for one in RANKS)
    counted = _count_rank(base, work, RANKS[0], checkpointing, fp8)  # casting has nothing to do with the rank
    share = (rank - RANKS[0]) / (RANKS[1] - RANKS[0])
    return Counted(*(round(one + share * (high - low)) for one, low, high in zip(counted, less, more, strict=True)))


@lru_cache
def _count_rank(base: Base, work: Work, rank: int, checkpointing: bool, fp8: bool) -> Counted:
    """Of two blocks of each kind, and as many more as there are, each of which holds what the second does."""
    live = Live()
    with live:
        built = base.build(dict.fromkeys(base.depth, 2))
        network = built.transformer
        with NewLora():
            built.add_lora(rank)
        cast_storage(network, "fp8" if fp8 else "full")
        if checkpointing:
            built.checkpoint_gradients()
        condition = base.condition(built, work.references, work.side, work.batch)
        latents = torch.empty(work.batch, *built.latents_shape(work.size), device="meta")
    lora = give_gradients(live, network)
    begun: dict[str, list[int]] = {kind: [] for kind in base.depth}
    for kind, found in begun.items():
        for block in base.blocks(network, kind):
            block.register_forward_pre_hook(lambda *_, found=found: found.append(live.now))
    one = count_pass(live, lambda: built.velocity(latents, 0.5, condition))
    largest = 2 * max(one.weight.numel() for one in network.modules() if isinstance(one, nn.Linear))
    total = [*_weights(network), largest, lora, *one]
    for kind, depth in base.depth.items():
        second = base.blocks(network, kind)[1]
        trained = sum(weight.nbytes for weight in second.parameters() if weight.requires_grad)
        kept = begun[kind][1] - begun[kind][0]
        more = [*_weights(second), 0, trained, kept, kept]
        total = [sum_ + (depth - 2) * part for sum_, part in zip(total, more, strict=True)]
    return Counted(*total)


def _weights(network: nn.Module) -> tuple[int, ...]:
    """Frozen ones: `Counted.stored`, `int8`, `nf4`, `merged`."""
    layers: list[Any] = [one.get_base_layer() for one in network.modules() if isinstance(one, LoraLayer)]
    merged = sum(one.weight.nbytes for one in layers if one.weight.itemsize > 1)  # as `umo.customizers.merging` chooses
    return *(stored_bytes(network, weights) for weights in ("full", "int8", "nf4")), merged


@lru_cache
def _count_decoder(base: Base, work: Work, checkpointing: bool) -> tuple[int, int]:
    """Bytes of the autoencoder, and at most in decoding with a gradient."""
    live = Live()
    with live:
        built = base.build(dict.fromkeys(base.depth, 1))
        if checkpointing:
            built.checkpoint_gradients()
        latents = torch.empty(work.batch, *built.latents_shape(work.size), device="meta", requires_grad=True)
    weights = [*built.vae.parameters(), *built.vae.buffers()]  # type: ignore[attr-defined]
    return sum(one.nbytes for one in weights), count_pass(live, lambda: built.decode(latents)).peak
