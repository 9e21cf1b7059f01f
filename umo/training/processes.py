"""Several processes that share a batch, one a GPU, on one machine or many; `accelerate launch` starts them.

Each holds the whole LoRA with its optimizer and its average. The frozen weights lie whole in each, or, where
accelerate is told to use FSDP, in shares, a block put together when it is its turn. So one file is a checkpoint of
either, and a run may go on with another number of processes.
"""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, disable_fsdp_ram_efficient_loading, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from umo.customizers.base import Customizer
from umo.errors import BadInput
from umo.training.recipe import Recipe

PATIENCE = timedelta(hours=1)  # for a process that reads the data set, or encodes the larger share of it


def start(recipe: Recipe, device: str) -> Accelerator:
    """What this process knows of the others; each calls it before anything is loaded.

    Raises BadInput: the batch cannot be shared, there are fewer GPUs than processes, or FSDP is asked for as it is not
    to be had.
    """
    kind = torch.device(device).type
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if kind == "cuda" and 1 < here > gpus:
        raise BadInput(f"{here} processes on a machine with {gpus} GPUs: start one a GPU (--num_processes)")
    precision = "bf16" if recipe.precision == "bf16" else "no"
    accelerator = Accelerator(
        cpu=kind == "cpu", mixed_precision=precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
    )
    check_batch(recipe, accelerator.num_processes)
    if sharded():
        check_sharding(recipe, accelerator.num_processes)
        disable_fsdp_ram_efficient_loading()  # or transformers loads text encoders in one process alone
    return accelerator


def check_batch(recipe: Recipe, processes: int) -> None:
    """Raises BadInput where so many processes cannot share the batch in whole micro-batches."""
    share, rest = divmod(recipe.batch, processes)
    if rest or share % min(recipe.micro_batch, share):
        parts = f"{processes} processes and micro-batches of {recipe.micro_batch}"
        raise BadInput(f"batch {recipe.batch} does not divide into {parts}: choose multiples")


def sharded() -> bool:
    """Whether accelerate is told to use FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def check_sharding(recipe: Recipe, processes: int) -> None:
    """Raises BadInput where FSDP is asked for as it is not to be had."""
    if processes == 1:
        raise BadInput("FSDP is asked for, and there is one process: start several, or leave FSDP out")
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise BadInput("FSDP is asked for in its first version: set fsdp_version to 2")
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise BadInput("FSDP is asked for with weights in main memory: set fsdp_offload_params to false")
    if recipe.weights != "full":
        raise BadInput(f"FSDP and weights {recipe.weights}: shares are of full weights; set weights to full")
    if recipe.micro_batch != 1:  # references of mixed sizes take a family several calls, which must be alike in number
        raise BadInput(f"FSDP and micro_batch {recipe.micro_batch}: processes call the network in step; set it to 1")


def place(accelerator: Accelerator, device: str) -> str:
    """Where this process loads a base to: what is going to be in shares, to main memory."""
    if accelerator.num_processes == 1:
        return device
    return "cpu" if sharded() else str(accelerator.device)


def distribute(customizer: Customizer, accelerator: Accelerator) -> None:
    """Put a customizer that has its LoRA on this process's device: whole, or this process's share of what is frozen."""
    if sharded():
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        trained = {weight for weight in customizer.transformer.parameters() if weight.requires_grad}
        lists = [child for child in customizer.transformer.children() if isinstance(child, nn.ModuleList)]
        for module in (*(block for blocks in lists for block in blocks), customizer.transformer):
            fully_shard(module, mesh=mesh, ignored_params=trained)
    customizer.to(accelerator.device)


class Gradients:
    """Averages gradients over all processes, in DistributedDataParallel's buckets.

    DDP sends the gradients in the backward pass that follows a forward through it. The passes of an update go past it:
    which of them is the last is not the same everywhere, for a picture without a face has no reward to send backward.
    After them one goes through it whose own gradient is 0. So sending is not hidden behind computing.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        """All processes take the first one's weights."""
        self._through = DistributedDataParallel(_Zero(weights), gradient_as_bucket_view=True)
        self.average()  # DDP lays out its buckets anew after the first: a resumed run adds up in the same order
        self._through.zero_grad()

    def average(self) -> None:
        """Replace the weights' gradients by their mean over the processes."""
        self._through().backward()


class _Zero(nn.Module):
    """0, with a gradient of 0 for every weight."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self) -> Tensor:
        return 0 * torch.stack([weight.sum() for weight in self.weights]).sum()
