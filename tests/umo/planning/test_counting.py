"""Counting on the meta device, against what autograd is known to keep."""

import torch
import torch.nn.functional as F
from torch import nn

from umo.planning.counting import Live, count_pass, give_gradients

ROWS, WIDTH, OUT, HIDDEN = 512, 256, 1024, 64  # every product is a multiple of an allocator's block


class LowRank(nn.Module):
    """A frozen layer in 16 bits, and two trained ones in 32."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, OUT, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(HIDDEN, OUT, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.up(self.down(x))


def test_autocast_keeps_16_bit_inputs_and_casts_of_trained_weights() -> None:
    live = Live()
    with live, torch.device("meta"):
        network, x = LowRank(), torch.empty(ROWS, WIDTH, dtype=torch.bfloat16)
    assert give_gradients(live, network) == 4 * HIDDEN * (WIDTH + OUT)
    one = count_pass(live, lambda: network(x))
    # `x` itself is the caller's. Kept: the middle, a cast of `up` to give `down` its gradient, and the result.
    assert one.kept == 2 * (ROWS * HIDDEN + HIDDEN * OUT + ROWS * OUT)
    assert one.peak > one.kept


def test_attention_keeps_no_matrix_of_all_pairs_and_norms_are_in_32_bits() -> None:
    live, heads, tokens, width = Live(), 2, 2048, 64
    with live, torch.device("meta"):
        query = torch.empty(1, heads, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    one = count_pass(live, lambda: F.scaled_dot_product_attention(query, query, query))
    assert one.kept == heads * tokens * (2 * width + 4)  # its output, and a number a row and head
    with live, torch.device("meta"):
        x = torch.empty(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    one = count_pass(live, lambda: F.layer_norm(x, (width,)))
    assert one.kept == tokens * (4 * width + 4 * width + 4 + 4)  # its input and output, a mean and a deviation a row


def test_checkpointing_keeps_the_inputs_of_blocks_alone() -> None:
    def run(checkpointing: bool) -> tuple[int, int]:
        live = Live()
        with live, torch.device("meta"):
            blocks = [LowRank() for _ in range(4)]
            back = torch.empty(OUT, WIDTH, dtype=torch.bfloat16)
            x = torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        for block in blocks:
            give_gradients(live, block)

        def forward() -> torch.Tensor:
            out = x
            for block in blocks:
                call = lambda y, block=block: block(y) @ back  # noqa: E731
                out = torch.utils.checkpoint.checkpoint(call, out, use_reentrant=False) if checkpointing else call(out)
            return out

        return tuple(count_pass(live, forward))

    kept, peak = run(checkpointing=True)
    assert kept == 4 * 2 * ROWS * WIDTH
    assert kept < peak < run(checkpointing=False)[1]
