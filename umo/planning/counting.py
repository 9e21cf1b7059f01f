"""Memory of a network counted on torch's meta device, where shapes are computed and numbers are not.

The network runs forward and backward as training runs it, so what autograd keeps, what is recomputed and what is cast
is the network's own and no table here has to follow it. Two things CUDA does on its own are told to the meta device:
autocast's choice of dtypes, and attention that keeps no matrix of all pairs.
"""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

BLOCK = 512  # bytes: CUDA's caching allocator gives multiples of it
DTYPE = torch.bfloat16
# Of torch's lists for CUDA (ATen/autocast_mode.h), what networks that draw call from Python.
_LOWER = {F.linear, F.conv2d, F.conv3d, torch.matmul, torch.bmm, torch.mm, torch.baddbmm, torch.einsum}
_LOWER |= {Tensor.matmul, Tensor.__matmul__}
_FLOAT32 = {F.layer_norm, F.rms_norm, F.group_norm, F.softmax, torch.softmax, F.mse_loss, torch.rsqrt, torch.exp}
_FLOAT32 |= {torch.pow, Tensor.pow, Tensor.__pow__, F.interpolate}


class Live(TorchDispatchMode):
    """Bytes of all tensors made within and still alive.

    Attributes:
        now: at present.
        peak: at most, since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.is_meta and (storage := one.untyped_storage()) not in self._seen:
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self._seen.add(storage)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, size)
        return made

    def _drop(self, size: int) -> None:
        self.now -= size


class CudaAutocast(TorchFunctionMode):
    """bf16 autocast as on CUDA, without its cache: what that keeps of a forward pass, the backward pass has no more."""

    def __init__(self) -> None:
        super().__init__()
        self._on = True

    def switch(self, device_type: str, enabled: bool = True) -> AbstractContextManager[None]:
        """In place of `torch.autocast`, which knows no meta device: what is switched off stays off."""
        self._on &= enabled
        return nullcontext()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs, dtype=DTYPE if self._on else None)
        if self._on and (func in _LOWER or func in _FLOAT32):
            to = DTYPE if func in _LOWER else torch.float32
            args, kwargs = tree_map_only(Tensor, lambda one: _cast(one, to), (args, kwargs))
        return func(*args, **kwargs)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class _Attention(torch.autograd.Function):
    """What a fused kernel keeps for its backward pass: q, k, v, its output, and a number a row and head."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        context.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(one) for one in context.saved_tensors[:3])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *others: Any, dtype: torch.dtype | None, **options: Any
) -> Tensor:
    return _Attention.apply(*(one.to(dtype or one.dtype) for one in (query, key, value)))


class NewLora(TorchFunctionMode):
    """Says of a new LoRA, whose ups are 0, what numbers would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return False if func is Tensor.any else func(*args, **(kwargs or {}))


class Pass(NamedTuple):
    """Bytes beyond the weights and their gradients.

    Attributes:
        kept: after the forward pass, for the backward pass.
        peak: at most, in both.
    """

    kept: int
    peak: int


def count_pass(live: Live, run: Callable[[], Tensor]) -> Pass:
    """A forward pass under autocast and its backward pass."""
    start = live.peak = live.now
    autocast = CudaAutocast()
    with live, autocast, patch.object(torch, "autocast", autocast.switch):
        out = run()
        kept = live.now - start
        # Not `backward`, which is a function of the mode's: within it the mode is off, and checkpointed blocks run.
        _engine_run_backward((out,), (torch.empty_like(out),), False, False, (), True, True)
        del out
    return Pass(kept, live.peak - start)


def give_gradients(live: Live, network: nn.Module) -> int:
    """Gradients for all trained weights, as they are there from the second pass of an update on; the weights' bytes."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    with live:
        for weight in trained:
            weight.grad = torch.empty_like(weight)
    return sum(weight.nbytes for weight in trained)
