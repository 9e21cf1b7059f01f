"""What each method hands to the judge."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipelines.__main__ import METHODS
from pipelines.compare import stage as compare
from pipelines.core import bases, products, shards
from pipelines.core.params import load
from pipelines.core.shards import ROOT, Machine
from pipelines.evaluate import stage as evaluate
from pipelines.generate import drawing
from pipelines.generate import stage as generate
from umo import faces, records
from umo.errors import BadInput, WorkFailed
from umo.evaluation import metrics, scoring
from umo.evaluation.cases import Case, read_cases, write_cases
from umo.faces import dlib
from umo.images import encode_png, read_image
from umo.scenes.prompts import prompt


def case(name: str, *people: str) -> Case:
    return Case(name, "", tuple((f"{person}.jpg",) for person in people), (), None, people)


def test_shuffled_asks_for_as_many_other_people():
    cases = [case("1", "a", "b"), case("2", "b", "c", "d"), case("3", "a"), case("4", "e", "a"), case("5", "f")]
    shuffled = generate._shuffled(cases)
    for before, after in zip(cases, shuffled, strict=True):
        names = [photos[0].removesuffix(".jpg") for photos in after.references]
        assert len(names) == len(set(names)) == len(before.people)
        assert tuple(names) == after.people
        assert not set(names) & set(before.people)


def test_shuffled_needs_other_people():
    with pytest.raises(WorkFailed, match="only 1 people who are not in 1"):
        generate._shuffled([case("1", "a", "b"), case("2", "a", "c")])


@pytest.mark.parametrize("method", [method for method in METHODS if method != "sir"])  # of the default graph
def test_every_method_draws_the_same_cases(repro, method):
    folder = repro.path / products.GENERATED / method
    asked = read_cases(repro.path / products.CASES / products.CASES_FILE, drawn=False)
    drawn = read_cases(folder / products.CASES_FILE)
    assert [(one.case_id, one.prompt, one.people) for one in drawn] == [
        (one.case_id, one.prompt, one.people) for one in asked
    ]
    for one, other in zip(drawn, asked, strict=True):
        assert all((folder / path).is_file() for path in one.paths)
        references = [(folder / path).read_bytes() for photos in one.references for path in photos]
        truth = [(repro.path / products.CASES / path).read_bytes() for photos in other.references for path in photos]
        assert references == truth


def test_people_seen_in_training_stop_the_stage(workspace):
    people = workspace.path / "models/tiny-uno/people.json"
    cases = read_cases(workspace.path / products.CASES / products.CASES_FILE, drawn=False)
    people.write_text(json.dumps(json.loads(people.read_text()) | {cases[0].people[0]: []}))
    said = f"1 people of the cases were seen in training by models/tiny-uno (first {cases[0].people[0]}"
    for stage in ("generate", "evaluate"):
        done = workspace.stage(stage, "--of", "base")
        assert done.returncode == 2
        assert said in done.stderr


def test_variety_is_spread_over_the_numbers_of_people():
    cases = [case(str(k), *"abc"[: k % 3 + 1]) for k in range(30)]
    for count in (3, 7, 18, 30):
        chosen = generate._spread(cases, count)
        numbers = [len(one.references) for one in chosen]
        assert len({one.case_id for one in chosen}) == count
        assert max(map(numbers.count, (1, 2, 3))) - min(map(numbers.count, (1, 2, 3))) <= 1
    assert len(generate._spread(cases, 99)) == 30


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orl: Callable[[int, int], np.ndarray]) -> Path:
    """A folder with three cases of one to three people, and the embedded base, which draws in two steps."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["bases"] = {"tiny-uno": params["bases"]["tiny-uno"] | {"folder": str(ROOT / "models/tiny-uno"), "steps": 2}}
    params["generate"] = {"seeds": 1, "variety_cases": 2, "variety_seeds": 2, "loss_draws": 2}
    params["compare"] = {"pairs": [["sft", "base"], ["target", "base"]]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    products.CASES.mkdir(parents=True)
    cases = []
    for n in (1, 2, 3):
        photos = [(f"{n}-{k}.png",) for k in range(n)]
        for k in range(n):
            (products.CASES / photos[k][0]).write_bytes(encode_png(orl(2 * n + k, 1)))
        target = np.concatenate([orl(2 * n + k, 2) for k in range(n)], axis=1)
        (products.CASES / f"{n}.png").write_bytes(encode_png(target))
        text = prompt([(k + 1) / (n + 1) for k in range(n)], "plain blue")
        cases.append(Case(f"case{n}", text, tuple(photos), (), f"{n}.png", tuple(f"{n}{k}" for k in range(n))))
    write_cases(products.CASES / products.CASES_FILE, cases)
    return tmp_path


def draw(method: str) -> Path:
    generate.run(load("generate"), Machine(), method)
    return products.GENERATED / method


def train(method: str, strength: float, people: tuple[str, ...] = ()) -> None:
    """What the stage `train` leaves: a LoRA, of no effect where `strength` is 0."""
    from umo import customizers

    customizer = customizers.load(ROOT / "models/tiny-uno")
    customizer.add_lora(2)
    generator = torch.Generator().manual_seed(0)
    for name, weight in customizer.transformer.named_parameters():
        if "lora_B" in name:
            weight.data = strength * torch.randn(weight.shape, generator=generator)
    customizer.save_lora(products.TRAINED / method)
    (products.TRAINED / method / products.TRAINING).write_text(json.dumps({"people": people}))


def pictures(folder: Path) -> dict[str, list[int]]:
    """Every picture below a method's folder as pixels: the files carry the key of what they were drawn from."""
    files = sorted(folder.rglob("*.png"))
    return {str(path.relative_to(folder)): read_image(path).tolist() for path in files}


def losses(folder: Path) -> dict[str, float]:
    rows = records.read(folder / products.LOSSES_TABLE, records.LOSSES).to_pylist()
    return {row["case_id"]: row["diffusion_loss"] for row in rows}


def test_a_lora_without_effect_draws_what_the_base_draws(studio):
    """The same noise for pictures, for variety and for the loss; what differs between methods is the LoRA."""
    train("sft", strength=0)
    base, sft = draw("base"), draw("sft")
    assert len(pictures(base)) == 3 + 2 * 2
    assert pictures(sft) == pictures(base)
    assert losses(sft) == pytest.approx(losses(base), rel=1e-5)
    assert set(losses(base)) == {"case1", "case2", "case3"}


def test_a_trained_method_draws_with_its_lora(studio):
    from umo.drawing.cases import generate_cases

    train("mimr", strength=0.1)
    base, mimr = draw("base"), draw("mimr")
    assert all(mine != theirs for mine, theirs in zip(pictures(mimr).values(), pictures(base).values(), strict=True))
    assert all(losses(mimr)[name] != pytest.approx(loss, rel=1e-3) for name, loss in losses(base).items())
    for part, seeds in (("", 1), (products.VARIETY, 2)):
        asked, again = mimr / part / products.CASES_FILE, studio / "again" / part
        lora = products.TRAINED / "mimr" / products.LORA
        generate_cases(ROOT / "models/tiny-uno", asked, again, seeds, steps=2, lora=lora)
        assert pictures(again / "images") == pictures(mimr / part / "images")


def test_variety_can_be_judged_by_itself(studio):
    folder = draw("base") / products.VARIETY
    cases = read_cases(folder / products.CASES_FILE)
    assert len(cases) == 2
    for one in cases:
        first, second = (read_image(folder / path) for path in one.images)
        assert not np.array_equal(first, second)
        assert all((folder / path).is_file() for path in one.paths)


def test_what_is_not_asked_for_is_not_made(studio):
    params = load("generate").model_copy(update={"variety_cases": 0, "loss_draws": 0})
    generate.run(params, Machine(), "base")
    draw("target")
    draw("shuffled")
    for method in ("base", "target", "shuffled"):
        assert sorted(path.name for path in (products.GENERATED / method).iterdir()) == ["CASES.jsonl", "images"]


def test_only_what_a_method_depends_on_draws_it_again(studio, monkeypatch):
    drawn = []

    def noted(base: bases.Base, lora: Path | None, *args: object) -> shards.Counts:
        drawn.append("base" if lora is None else lora.parent.name)
        return drawing.draw(base, lora, *args)

    monkeypatch.setattr(generate, "draw", noted)

    def redrawn() -> set[str]:
        """The methods, of base and sft, that draw when both are asked for."""
        drawn.clear()
        for method in ("base", "sft"):
            draw(method)
        return set(drawn)

    train("sft", strength=0.1)
    assert redrawn() == {"base", "sft"}

    file = studio / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["bases"]["tiny-uno"]["train"]["steps"] += 1
    file.write_text(yaml.safe_dump(params))
    (products.TRAINED / "sft" / "README.md").write_text("a card")
    assert redrawn() == set()
    train("sft", strength=0.2)
    assert redrawn() == {"sft"}
    params["bases"]["tiny-uno"]["steps"] = 3
    file.write_text(yaml.safe_dump(params))
    assert redrawn() == {"base", "sft"}


def test_a_killed_stage_goes_on_where_it_stopped(studio, monkeypatch):
    """Killed in the last of its work, the losses: no picture is drawn twice, and the product is the same."""
    import umo.drawing.cases
    import umo.evaluation.held_out

    train("sft", strength=0)
    whole = pictures(draw("base"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(umo.evaluation.held_out, "held_out_losses", killed)
        with pytest.raises(KeyboardInterrupt):
            draw("sft")
    real, counts = umo.drawing.cases.generate_cases, []

    def counted(*args: object, **options: object) -> umo.drawing.cases.Counts:
        counts.append(real(*args, **options))
        return counts[-1]

    monkeypatch.setattr(umo.drawing.cases, "generate_cases", counted)
    assert pictures(draw("sft")) == whole
    assert [(count.drawn, count.kept) for count in counts] == [(0, 3), (4, 0)]


def test_pieces_draw_the_same(studio, monkeypatch):
    """Every picture and loss is there once, whichever piece it belongs to."""
    whole = draw("base")
    cases = (whole / products.CASES_FILE).read_bytes(), (whole / products.VARIETY / products.CASES_FILE).read_bytes()
    seen, lost = pictures(whole), losses(whole)
    monkeypatch.setattr(generate, "PIECE", 2)
    shutil.rmtree(".work")
    draw("base")
    assert len(list((generate.DRAWINGS / "base").iterdir())) == 2 + 2
    assert (whole / products.CASES_FILE).read_bytes() == cases[0]
    assert (whole / products.VARIETY / products.CASES_FILE).read_bytes() == cases[1]
    assert losses(whole) == pytest.approx(lost, rel=1e-4)
    for name, picture in pictures(whole).items():
        assert np.abs(np.array(picture) - np.array(seen[name])).max() <= 1, name


def test_people_that_a_method_was_trained_on_stop_it_alone(studio):
    with pytest.raises(BadInput, match=r"runs/train/sir/.*: missing; train .* first \(dvc repro train@sir\)"):
        draw("sir")
    train("sir", strength=0.1, people=("31", "somebody"))
    with pytest.raises(BadInput, match=r"1 people of the cases were seen in training by runs/train/sir \(first 31"):
        draw("sir")
    draw("base")


def test_the_judge_looks_at_a_picture_once_and_scores_as_umo_evaluate(studio, monkeypatch):
    looked = []
    describe = dlib.Dlib._propose

    def noted(judge: dlib.Dlib, picture: np.ndarray) -> list:
        looked.append(hashlib.sha256(picture.tobytes()).hexdigest())
        return describe(judge, picture)

    monkeypatch.setattr(dlib.Dlib, "_propose", noted)
    for method in ("target", "base"):
        draw(method)
        evaluate.run(load("evaluate"), Machine(), method)
    assert len(looked) == len(set(looked)) == 6 + 3 + 3  # references, targets, drawings of the base
    drawn = products.GENERATED / "base" / products.CASES_FILE
    scoring.evaluate(drawn, studio / "again", faces.load("dlib"))
    for name in (products.METRICS, products.SCORES_TABLE):
        assert (studio / "again" / name).read_bytes() == (products.EVALUATED / "base" / name).read_bytes()
    assert (products.EVALUATED / "target" / products.SCORES_TABLE).exists()


@pytest.mark.slow
def test_side_effects_are_judged_and_compared(studio):
    train("sft", strength=0.2)
    for method in ("target", "base", "sft"):
        draw(method)
        evaluate.run(load("evaluate"), Machine(), method)
    compare.run(load("compare"), Machine())

    def table(method: str) -> dict[str, dict]:
        rows = records.read(products.EVALUATED / method / products.SIDE_EFFECTS_TABLE, records.SIDE_EFFECTS)
        return {row["case_id"]: row for row in rows.to_pylist()}

    assert table("base").keys() == table("target").keys() == {"case1", "case2", "case3"}
    assert all(row["sharpness_error"] == 0 and row["diffusion_loss"] is None for row in table("target").values())
    assert {name: row["diffusion_loss"] for name, row in table("base").items()} == losses(products.GENERATED / "base")
    assert [row["variety"] is None for row in table("base").values()].count(False) == 2
    summary = json.loads((products.EVALUATED / "sft" / products.SIDE_EFFECTS).read_text())
    assert set(summary) == set(metrics.SIDE_EFFECTS)
    assert summary["diffusion_loss"]["n"] == 3
    found = json.loads(products.COMPARISONS.read_text())
    cost = np.mean(
        [table("sft")[name]["diffusion_loss"] - row["diffusion_loss"] for name, row in table("base").items()]
    )
    assert found["sft-base"]["side_effects"]["diffusion_loss"]["difference"] == pytest.approx(cost)
    assert found["sft-base"]["side_effects"]["diffusion_loss"]["verdict"] == "worse"
    assert found["sft-base"]["side_effects"]["variety"]["n"] == 2
    assert found["target-base"]["side_effects"]["diffusion_loss"]["n"] == 0
    assert found["target-base"]["coverage"]["n"] == 3


def test_the_judge_does_not_give_the_reward(studio):
    file = studio / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["train"]["reward"] = params["evaluate"]["judge"]
    file.write_text(yaml.safe_dump(params))
    with pytest.raises(
        BadInput, match=r"evaluate.judge is 'dlib', which also gives the reward \(train.reward\): choose"
    ):
        evaluate.run(load("evaluate"), Machine(), "target")
