"""The bench for a GPU at its toy size: every row of its table, and that it is training that is measured."""

from collections.abc import Iterator

import pytest
import torch

from bench import gpu
from bench.timing import Stopwatch
from umo.planning import bases

CPU = torch.device("cpu")
TOY = gpu.SCALES["toy"]


@pytest.fixture(scope="module", autouse=True)
def _short_prompt() -> Iterator[None]:
    """Sixteen tokens for FLUX's 512, on which a CPU without bfloat16 spends four fifths of an update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases, "TEXT_TOKENS", 16)
        yield


@pytest.fixture(scope="module")
def cells() -> list[gpu.Cell]:
    return list(gpu.grid(TOY, CPU, updates=2))


def test_the_table_has_a_row_for_each_cell_of_the_grid(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cells: list[gpu.Cell]
) -> None:
    monkeypatch.setattr(gpu, "grid", lambda scale, device: iter(cells))
    assert gpu.main(["--size", "toy", "--device", "cpu"]) == 0
    what, _, head, rule, *rows = capsys.readouterr().out.splitlines()
    assert torch.__version__ in what
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    assert [row[:2] for row in table[1:]] == [
        ["off", "beside"],
        ["off", "merged"],
        ["on", "beside"],
        ["on", "merged"],
    ]
    assert {len(row) for row in table} == {rule.count("---")} == {len(gpu.PARTS) + 5}
    assert all(float(number) >= 0 for row in table[1:] for number in (*row[2:-2], row[-1]))


def test_checkpointing_changes_no_loss_and_merging_rounds_it(cells: list[gpu.Cell]) -> None:
    """The losses after the first come from weights that the gradients before have changed; all is in bfloat16."""
    losses = [cell.losses for cell in cells]
    assert len(losses[0]) == 3 and len(set(losses[0])) == 3
    for other, tolerance in zip(losses[1:], (5e-3, 1e-4, 5e-3), strict=True):
        assert other == pytest.approx(losses[0], rel=tolerance)


def test_an_update_changes_every_weight_of_the_lora() -> None:
    update = gpu.Update(TOY, CPU, checkpointing=False, merged=True)
    before = [weight.detach().clone() for weight in update.weights]
    for step in range(2):  # the first changes the second halves only: they are 0, and so is the first halves' gradient
        update(step, Stopwatch())
    assert not any(torch.equal(one, other) for one, other in zip(before, update.weights, strict=True))


@pytest.mark.parametrize("left_out", ["diffusion_weight", "reward_weight"])
def test_each_loss_has_a_gradient_of_its_own(left_out: str) -> None:
    """The reward's comes through the fixed faces, the embedder and the decoder."""
    update = gpu.Update(TOY, CPU, checkpointing=True, merged=True)
    update.recipe = update.recipe.model_copy(update={left_out: 0.0})
    update(0, Stopwatch())
    assert max(float(weight.grad.abs().max()) for weight in update.weights if weight.grad is not None) > 0


def test_a_cell_that_runs_out_of_memory_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gpu.Update

    def small_memory(scale: gpu.Scale, device: torch.device, checkpointing: bool, merged: bool) -> gpu.Update:
        if not checkpointing or not merged:
            raise torch.OutOfMemoryError
        return whole(scale, device, checkpointing, merged)

    monkeypatch.setattr(gpu, "Update", small_memory)
    rows = [cell.row() for cell in gpu.grid(TOY, CPU, updates=1)]
    assert ["out of memory" in row for row in rows] == [True, True, True, False]
    assert len({row.count("|") for row in rows}) == 1


def test_the_real_size_is_flux_1_dev() -> None:
    """The numbers of weights of the published transformer and autoencoder."""
    flux = gpu.build(gpu.SCALES["flux1"], "meta")
    weights = [sum(weight.numel() for weight in module.parameters()) for module in (flux.transformer, flux.vae)]
    assert weights == [11_901_408_320, 83_819_683]
    assert flux.transformer.config.guidance_embeds


def test_the_real_size_is_refused_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--size", "flux1", "--device", "cpu"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["flux2-klein-4b", "qwen-image-edit"])
def test_other_bases_are_of_their_published_size(size: str) -> None:
    base = gpu.build(gpu.SCALES[size], "meta")
    billions = sum(weight.numel() for weight in base.transformer.parameters()) / 1e9
    assert billions == pytest.approx({"flux2-klein-4b": 3.88, "qwen-image-edit": 20.43}[size], abs=0.005)
    sigmas = base.sigmas(4, (1024, 1024))
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
