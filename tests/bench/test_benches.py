"""The benches at their smallest: what they count, that both sides of a ratio do the same work, what they write."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench import __main__ as command
from bench import draw_batched, ledger, rerefl_evaluations, rerefl_step, reward_batched
from bench.rerefl_curves import Point, compare
from bench.rerefl_evaluations import Evaluations, HeldOut
from bench.result import Result
from bench.setup import Setup, faithful, from_params
from bench.timing import Stopwatch
from pipelines.core import bases
from tests.conftest import BandJudge
from tests.umo.training.conftest import TRAIN, VALIDATION, sample
from umo.errors import BadInput
from umo.training.draws import draw_randomness
from umo.training.recipe import Recipe
from umo.training.samples import Samples
from umo.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


# Evaluations of the network.


def trainer_of(setup: Setup, recipe: Recipe) -> Trainer:
    customizer = setup.load_base()
    samples = Samples(setup.train, customizer, setup.reward, recipe.anchor, setup.encoded)
    return Trainer(customizer, samples, None, setup.reward, recipe, "mimr", setup.scratch)


def late_steps(recipe: Recipe) -> list[int]:
    return [draw_randomness(recipe, (1, 1, 1), step, [0]).late for step in range(recipe.steps)]


ROLLOUTS: dict[str, Callable[[list[int]], int]] = {
    "faithful": lambda late: sum(4 - step for step in late),
    "short": lambda late: sum(3 - step for step in late),
    "two-step": lambda late: len(late),  # the first of its two steps, with gradient too
    "reforwarded": lambda late: 4 * len(late) // 3,  # a whole rollout for three updates
}


@pytest.mark.parametrize("form", ROLLOUTS)
def test_an_update_is_its_rollout_and_two_passes_with_gradient(setup: Setup, form: str) -> None:
    recipe = rerefl_evaluations.forms(setup.recipe, updates=3)[form]
    trainer, counted = trainer_of(setup, recipe), Evaluations()
    with counted.watching(trainer.customizer.transformer):
        for _ in range(recipe.steps):
            trainer.update()
    late = late_steps(recipe)
    possible = {"short": {1, 2}, "two-step": {2}}.get(form, {1, 2, 3})
    assert len(late) == (3 if form == "faithful" else 6) and set(late) <= possible
    assert counted.forwards == recipe.batch * (ROLLOUTS[form](late) + 2 * len(late))
    assert counted.backwards == recipe.batch * (3 if form == "two-step" else 2) * len(late)


def test_nothing_is_counted_that_is_not_watched(setup: Setup) -> None:
    trainer, counted = trainer_of(setup, faithful(setup.recipe)), Evaluations()
    with counted.watching(trainer.customizer.transformer):
        pass
    trainer.update()
    assert counted.forwards == counted.backwards == 0


def test_the_other_forms_differ_from_the_faithful_one_in_the_rollout_alone(setup: Setup) -> None:
    forms = {name: recipe.model_dump() for name, recipe in rerefl_evaluations.forms(setup.recipe, updates=5).items()}
    turned = {"steps", "rollout_start", "updates_per_rollout", "checkpoint_every"}
    turned |= {"rollout_steps", "gradient_first", "gradient_last", "gradient_steps", "reward_picture"}
    for name, recipe in forms.items():
        assert {key for key, value in recipe.items() if value != forms["faithful"][key]} <= turned, name


# The whole and its parts.


def test_whole_and_parts_send_the_same_samples_through_the_network(setup: Setup) -> None:
    trainer, samples = rerefl_step.prepare(setup)
    for step in range(2):
        whole, parts = Evaluations(), Evaluations()
        with whole.watching(trainer.customizer.transformer):
            trainer.update()
        draws = draw_randomness(trainer.recipe, samples.last.target.shape[1:], step, range(2))
        with parts.watching(trainer.customizer.transformer):
            rerefl_step.bare(trainer, samples.last, draws, Stopwatch())
        assert (parts.forwards, parts.backwards) == (whole.forwards, whole.backwards)


def test_the_parts_leave_the_training_as_it_was(setup: Setup) -> None:
    """Otherwise updates between which parts are measured would be those of no training."""
    alone, _ = rerefl_step.prepare(setup)
    measured, samples = rerefl_step.prepare(setup)
    for _ in range(2):
        alone.update()
        rerefl_step.pair(measured, samples)
    assert all(torch.equal(one, other) for one, other in zip(alone.weights, measured.weights, strict=True))


def test_the_overhead_is_a_finite_ratio_with_every_part(setup: Setup) -> None:
    result = rerefl_step.run(setup, updates=2, warm_up=1)
    assert result.value is not None and 0 < result.value < float("inf")
    assert len(result.details["ratios"]) == 2
    assert set(result.details["seconds_per_update"]) == {rerefl_step.WHOLE, *rerefl_step.PARTS}


# The reward.


def test_both_forms_of_the_reward_agree(setup: Setup) -> None:
    settings = setup.load_base().settings
    for people in reward_batched.PEOPLE:
        drawn = reward_batched.near_targets(setup.train, settings, people, 2)
        anchors = [setup.reward.embed_anchors("references", photos) for photos in drawn.photos]
        rewards, gradient = reward_batched.batched(setup.reward, drawn.pictures, anchors)
        single, single_gradient = reward_batched.one_by_one(setup.reward, drawn.pictures, drawn.photos)
        assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0
        assert torch.allclose(rewards, single) and torch.allclose(gradient, single_gradient, atol=1e-7)


def test_the_batch_embeds_its_references_once_and_the_published_form_every_time(setup: Setup) -> None:
    calls = setup.reward.faces.calls
    drawn = reward_batched.near_targets(setup.train, setup.load_base().settings, 2, 2)
    reward_batched.measure(setup.reward, drawn, repeats=2)
    anchors, turns, pictures = len(drawn.photos), 3, len(drawn.pictures)
    assert calls.embed == anchors + turns * (1 + 2 * pictures)


def test_the_reward_is_measured_for_two_and_three_people(setup: Setup) -> None:
    result = reward_batched.run(setup, batch=2, repeats=1)
    assert result.value is not None and 0 < result.value < float("inf")
    assert set(result.details["by_people"]) == {"2", "3"}


# Drawing.


def test_both_ways_to_draw_agree(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_batched, "BATCH", 2)
    asked = draw_batched.asked_for([*setup.train, *setup.train], 2, 3)
    base = setup.load_base()
    single = draw_batched.one_by_one(base, asked)
    batches = draw_batched.in_batches(asked)
    assert [len(batch.prompts) for batch in batches] == [2, 1]
    together = torch.cat([draw_batched.drawn(base, batch) for batch in batches])
    assert torch.allclose(together, single, atol=1e-4)
    assert not torch.allclose(single[0], single[1], atol=1e-2)


def test_drawing_needs_enough_sets(setup: Setup) -> None:
    with pytest.raises(BadInput, match=r"sets of 2 people, and 99 are needed: make more scenes"):
        draw_batched.asked_for(setup.train, 2, 99)


# The curves.


@pytest.fixture
def held_out(setup: Setup, tmp_path: Path) -> HeldOut:
    return HeldOut(setup.validation, BandJudge(tmp_path / "judge.weights"), tmp_path / "pictures")


def test_people_held_out_are_drawn_from_the_same_noise_and_judged_every_time(setup: Setup, held_out: HeldOut) -> None:
    customizer = setup.load_base()
    first, again = held_out.likeness(customizer, "a"), held_out.likeness(customizer, "b")
    assert first == again and first["n"] == len(setup.validation)
    with torch.no_grad():
        customizer.transformer.proj_out.weight.mul_(-1)
    assert held_out.likeness(customizer, "c")["mean"] != first["mean"]


def test_a_picture_is_judged_by_its_own_references(setup: Setup, held_out: HeldOut) -> None:
    """Whatever order the pictures are drawn in: sets of one, two and three people are drawn apart."""
    targets = {one.name: one.target for one in setup.train}

    class Copies(HeldOut):
        def _draw(self, customizer, rows):
            return [reward_batched.read_image(targets[self.samples[row].name]) for row in rows]

    perfect = Copies(setup.train, held_out.gallery.judge, held_out.folder)
    assert perfect.likeness(setup.load_base(), "targets")["mean"] == pytest.approx(1, abs=1e-5)


def test_a_curve_has_its_points_and_a_finished_form_is_not_trained_again(
    setup: Setup, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = faithful(setup.recipe, steps=3)
    points = rerefl_evaluations.kept_curve(setup, "faithful", recipe, held_out, every=2)
    assert [point.update for point in points] == [0, 2, 3]
    assert points[0].forwards == 0
    expected = ROLLOUTS["faithful"](late_steps(recipe)) + 2 * 3
    assert points[2].forwards == recipe.batch * expected, "drawing for the judge was counted"
    monkeypatch.setattr(rerefl_evaluations, "curve", lambda *given: pytest.fail("trained again"))
    assert rerefl_evaluations.kept_curve(setup, "faithful", recipe, held_out, every=2) == points


@pytest.mark.parametrize("change", ["learning rate", "base or data", "people"])
def test_a_form_of_other_things_is_trained_again(setup: Setup, held_out: HeldOut, change: str) -> None:
    recipe = faithful(setup.recipe, steps=1)
    rerefl_evaluations.kept_curve(setup, "faithful", recipe, held_out, every=1)
    if change == "learning rate":
        recipe = faithful(setup.recipe, steps=1, learning_rate=0.5)
    elif change == "base or data":
        setup = replace(setup, fingerprint="other")
    else:
        held_out.samples[0] = sample("fay", "dee")
    rerefl_evaluations.kept_curve(setup, "faithful", recipe, held_out, every=1)
    assert len(list((setup.scratch / rerefl_evaluations.NAME).glob("*.json"))) == 2


def line(*values: float, cost: int = 10) -> list[Point]:
    """A curve whose points are `cost` forwards and 2 backwards apart."""
    return [
        Point(k, cost * k, 2 * k, 0.0, {"mean": value, "low": None, "high": None, "n": 3})
        for k, value in enumerate(values)
    ]


def test_evaluations_are_compared_at_the_level_that_the_faithful_form_ends_with(setup: Setup) -> None:
    curves = {
        "faithful": [line(0.2, 0.3, 0.4)],
        "target": [line(0.2, 0.3, 0.5, cost=2)],  # reaches .4 half way from 2 to 4 evaluations
        "short": [line(0.2, 0.3, 0.39)],
    }
    result = compare(curves, setup.recipe, "bands")
    assert result.value == pytest.approx(3 / 20) and result.holds
    assert result.details["ratios"] == {"faithful": 1.0, "target": pytest.approx(3 / 20), "short": None}
    assert result.details["ratios_with_backward"]["target"] == pytest.approx((3 + 2 * 3) / (20 + 2 * 4))
    del curves["target"]
    assert compare(curves, setup.recipe, "bands").value is None
    early = {"faithful": [line(0.2, 0.5, 0.4)], "target": [line(0.2, 0.4, cost=2)]}  # crosses .4 on the way to .5
    assert compare(early, setup.recipe, "bands").value == pytest.approx(2 / (10 * 2 / 3))


def test_of_several_seeds_the_mean_curves_are_compared(setup: Setup) -> None:
    curves = {
        "faithful": [line(0.2, 0.4, cost=10), line(0.2, 0.6, cost=14)],  # at 12 on to .5
        "short": [line(0.1, 0.3, 0.5, cost=2), line(0.3, 0.6, 0.7, cost=2)],  # .2, .45, .6: .5 at 2 + 2 / 3
    }
    result = compare(curves, setup.recipe, "bands")
    assert result.details["level"] == pytest.approx(0.5) and result.details["seeds"] == 2
    assert result.value == pytest.approx((2 + 2 / 3) / 12)
    assert result.details["by_seed"]["short"] == [pytest.approx(3 / 10), pytest.approx(2 / 14)]
    assert [one["mean"] for one in result.details["curves"]["short"][1]["likeness"]["by_seed"]] == [0.3, 0.6]


@pytest.mark.parametrize("other", [line(0.2, 0.3), line(0.5, 0.6)])
def test_without_a_gain_of_the_faithful_form_there_is_nothing_to_reach(setup: Setup, other: list[Point]) -> None:
    result = compare({"faithful": [line(0.4, 0.3)], "target": [other]}, setup.recipe, "bands")
    assert result.value is None and not result.holds


@pytest.mark.parametrize(("quick", "seeds"), [(False, 3), (True, 1)])
def test_every_form_is_trained_with_as_many_seeds(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, quick: bool, seeds: int
) -> None:
    trained: dict[str, list[int]] = {}

    def kept(setup: Setup, name: str, recipe: Recipe, held_out: HeldOut, every: int) -> list[Point]:
        trained.setdefault(name, []).append(recipe.seed)
        return line(0.2, 0.4)

    monkeypatch.setattr(rerefl_evaluations, "kept_curve", kept)
    monkeypatch.setattr(rerefl_evaluations, "HeldOut", lambda *given: None)
    result = rerefl_evaluations.run(setup, updates=3, quick=quick)
    assert set(trained) == set(ROLLOUTS)
    assert all(own == [setup.recipe.seed + k for k in range(seeds)] for own in trained.values())
    assert result.details["seeds"] == seeds


# The setup, the file and the command.


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the repository's code, base and params.yaml, with small exported sets; gives their folder."""
    for name in ("params.yaml", "models", "pipelines", "umo"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for split, sets in (("train", TRAIN), ("validation", VALIDATION)):
        export(Path("datasets/exported"), split, sets)
    return Path("datasets/exported")


def export(folder: Path, split: str, sets: Sequence[Sequence[str]]) -> None:
    """The columns of an exported split that training reads."""
    rows = [
        {
            "set_id": one.name,
            "prompt": one.prompt,
            "references": [{"bytes": photo, "path": "a.png"} for photo in one.references],
            "target": {"bytes": one.target, "path": "b.png"},
            "person_ids": list(one.people),
            "target_landmarks": [[0.0] * 10 for _ in one.people],
            "pool": [[{"bytes": photo, "path": "c.png"}] for photo in one.references],
            "licence": "CC0",
        }
        for one in (sample(*people) for people in sets)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000.parquet")


def test_the_setup_is_that_of_params_yaml(exported: Path) -> None:
    setup = from_params()
    assert [one.people for one in setup.train] == TRAIN and [one.people for one in setup.validation] == VALIDATION
    assert setup.recipe == bases.chosen().train
    assert setup.load_base().name == "tiny-uno"


def test_the_fingerprint_is_of_the_sets(exported: Path) -> None:
    before = from_params().fingerprint
    assert from_params().fingerprint == before
    export(exported, "train", TRAIN[1:])
    assert from_params().fingerprint != before


@pytest.mark.parametrize(
    ("value", "lower_is_better", "holds"),
    [(1.1, True, True), (1.2, True, False), (1.1, False, True), (1.0, False, False), (None, True, False)],
)
def test_a_result_says_whether_its_bar_is_met(
    tmp_path: Path, value: float | None, lower_is_better: bool, holds: bool
) -> None:
    path = Result("one", value, "a / b", "b", 1.1, lower_is_better, {"more": [1]}).write(
        tmp_path, "python -m bench one"
    )
    written = json.loads(path.read_text())
    assert path.name == "one.json" and written["holds"] is holds and written["more"] == [1]
    assert {"name", "value", "unit", "against", "bar", "holds", "command", "machine"} < set(written)
    assert torch.__version__ in written["machine"]


def test_the_command_runs_what_is_named_and_writes_how_to_run_it_again(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(setup: Setup, updates: int, every: int, quick: bool = False) -> Result:
        ran.append((setup.fingerprint, updates, every, quick))
        return Result("rerefl-evaluations", 0.3, "", "", 1, True)

    monkeypatch.setattr("bench.setup.from_params", lambda: setup)
    monkeypatch.setattr(rerefl_evaluations, "run", run)
    options = ["--updates", "4", "--every", "2", "--quick", "--out", str(tmp_path)]
    assert command.main(["rerefl-evaluations", *options]) == 0
    assert ran == [("small", 4, 2, True)]
    written = json.loads((tmp_path / "rerefl-evaluations.json").read_text())
    assert written["command"] == "python -m bench rerefl-evaluations --updates 4 --every 2 --quick"


def test_the_long_bench_is_run_only_when_it_is_asked_for(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.setup.from_params", lambda: setup)
    for name, module in command.BENCHES.items():
        monkeypatch.setattr(f"{module}.run", lambda setup, name=name: Result(name, 1.0, "", "", 1, True))
    assert command.main(["--out", str(tmp_path / "quick")]) == 0
    assert command.main(["--long", "--out", str(tmp_path / "all")]) == 0
    written = {folder: {path.stem for path in (tmp_path / folder).iterdir()} for folder in ("quick", "all")}
    assert written == {"quick": set(command.QUICK), "all": set(command.BENCHES)}
    assert set(command.LONG) & set(command.QUICK) == set()


def test_a_bench_of_the_data_engine_needs_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.setup.from_params", lambda: pytest.fail("no base is there"))
    monkeypatch.setattr("bench.curate_million.run", lambda faces: Result("curate-million", faces, "", "", 1, True))
    assert command.main(["curate-million", "--faces", "300", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "curate-million.json").read_text())
    assert written["command"] == "python -m bench curate-million --faces 300"
    assert written["value"] == 300


def test_an_unknown_bench_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["rerefl"])
    assert stopped.value.code == 2 and "no bench 'rerefl'" in capsys.readouterr().err


def test_the_bench_of_the_ledger_loads_and_adds_what_it_says() -> None:
    found = ledger.run(faces=20_000)
    assert found.value == pytest.approx(max(found.details["seconds"] / 20, found.details["peak_gib"] / 3), abs=2e-3)
    bytes_a_face = found.details["bytes_a_face"]
    assert 18 < bytes_a_face["file"] < 20 and bytes_a_face["in git"] < 12
