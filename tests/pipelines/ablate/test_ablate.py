"""The ladder in a small world: cells are trained alike, drawn, judged, resumed, and told of on a page."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipelines.ablate import stage, training
from pipelines.core import cells, params, products
from pipelines.core.cells import Cell, Ladder, Place
from pipelines.core.shards import ROOT
from pipelines.report import cells as report
from pipelines.report import claims, ladder_page
from tests.conftest import BandJudge
from tests.umo.training.conftest import SMALL, TRAIN, VALIDATION, small_base
from tests.umo.training.test_folder import SCHEMA, export, row
from umo import faces, records
from umo.errors import BadInput
from umo.training.recipe import Recipe
from umo.training.trainer import Trainer

OF_TEST = {"dee": "gus", "eve": "hal", "fay": "ivy"}
CELLS = {
    "pull": {"of": "mimr", "batches": 3},
    "cells": {
        "base": {"method": "base"},
        "mimr": {"method": "mimr"},
        "twice": {"method": "mimr", "recipe": {"lambda_match": 2, "lambda_mismatch": -2}},
        "short": {"method": "mimr", "recipe": {"rollout_steps": 2, "gradient_last": 2}, "evaluations_of": "mimr"},
    },
    "validation": {"cells": ["base", "mimr"], "seeds": [7], "points": 2, "params": {"cases": {"split": "validation"}}},
    "test": {"cells": ["base", "mimr"], "seeds": [7, 8], "params": {"cases": {"split": "test"}}},
}


def rows() -> dict[str, list[dict]]:
    """Of the splits; the test people look like those of the validation, and are others."""
    found = {"train": TRAIN[:4], "validation": VALIDATION}
    made = {split: [row(*people) for people in of] for split, of in found.items()}
    made["test"] = [
        row(*people) | {"set_id": f"t{k}", "person_ids": [OF_TEST[name] for name in people]}
        for k, people in enumerate(VALIDATION)
    ]
    for one in (one for of in made.values() for one in of):
        one["references"] = [
            picture | {"path": f"{one['set_id']}-{k}.png"} for k, picture in enumerate(one["references"])
        ]
        one["target"] = one["target"] | {"path": f"{one['set_id']}.png"}
        one["cross_cosine"] = 0.1
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a base of 70,000 weights, sets of people who are colours, and cells; the current folder."""
    root, before = tmp_path_factory.mktemp("ladder"), Path.cwd()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.chdir(root)
    small_base().save(Path("models/small"))
    export(products.EXPORTED, rows(), SCHEMA.append(pa.field("cross_cosine", pa.float32())))
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe = {**SMALL, "steps": 2, "batch": 2, "micro_batch": 2, "validate_every": 1, "checkpoint_every": 1}
    values |= {
        "machine": {},
        "bases": {"small": {"folder": "models/small", "train": recipe}},
        "train": {"base": "small", "reward": "bands"},
        "evaluate": {"judge": "judge"},
        "generate": {"seeds": 1, "variety_cases": 0, "variety_seeds": 2, "loss_draws": 0},
    }
    values["measure"]["faces"] = "bands"
    params.PARAMS.write_text(yaml.safe_dump(values))
    cells.ABLATED.mkdir(parents=True)
    cells.CELLS.write_text(yaml.safe_dump(CELLS))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("bands", "judge"):
            patch.setitem(faces.MODELS, name, lambda name=name: BandJudge(root / f"{name}.weights"))
        yield root
    faces._load.cache_clear()
    os.chdir(before)
    torch.set_num_threads(threads)


def values(specified: Ladder | None = None) -> training.Values:
    return training.Values(params.read(), specified or cells.read_cells())


def test_cells_that_are_killed_go_on(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is finished; the next dies in its training, then between training and drawing, and is whole in the end."""
    stage.make(Place("validation", "base", 7))
    place, updates = Place("validation", "mimr", 7), []
    update, judge = Trainer.update, stage.judge

    def counted(trainer: Trainer) -> dict:
        if trainer.recipe.learning_rate != training.STILL:
            updates.append(trainer.progress.step)
            if len(updates) == 2:
                raise KeyboardInterrupt
        return update(trainer)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "update", counted)
    with pytest.raises(KeyboardInterrupt):
        stage.make(place)
    monkeypatch.setattr(stage, "judge", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.make(place)
    assert not place.path.exists()
    assert updates == [0, 1, 1]  # the first update was kept
    monkeypatch.setattr(stage, "judge", judge)
    stage.make(place)
    assert updates == [0, 1, 1]  # nothing is trained again
    head = json.loads((place.path / cells.CELL_METRICS).read_text())
    assert [point["updates"] for point in head["points"]] == [1, 2]
    assert (head["cell"], head["seed"], head["updates"], head["recipe"]["seed"]) == ("mimr", 7, 2, 7)
    assert 0 < head["points"][0]["evaluations"] < head["points"][1]["evaluations"] == head["evaluations"]
    table = records.read(place.path / products.SCORES_TABLE, records.SCORES)
    assert {person for own in table["people"].to_pylist() for person in own} == {"dee", "eve", "fay"}
    assert table["boxes"].null_count == len(table) == head["images"]
    assert (place.path / cells.CELL_STRIP).stat().st_size < 100_000
    assert products.TRAINED.exists() is products.CASES.exists() is False  # the workspace itself has none of it


def test_a_reward_twice_as_strong_gets_half_the_weight(world: Path) -> None:
    specified = cells.read_cells()
    weight = {
        name: training.comparable(values(), specified.cells[name], 7)["reward_weight"] for name in ("mimr", "twice")
    }
    assert weight["mimr"] == 1  # the recipe's own
    assert weight["twice"] == pytest.approx(0.5, rel=1e-3)
    own = Cell(method="mimr", recipe={"reward_weight": 3})
    assert training.comparable(values(), own, 7)["reward_weight"] == 3


def test_a_cheaper_form_makes_as_many_evaluations(world: Path) -> None:
    """Per sample of an update: one for the loss, and for the reward a rollout down to a step k <= 2 or 3."""
    specified = cells.read_cells()
    given = values()
    recipe = training.comparable(given, specified.cells["short"], 7)
    longer = given.recipe(specified.cells["mimr"], seed=7)
    spent = []
    for one in (longer, recipe):
        ((at, _),) = training.train(given, "mimr", one, [one["steps"]])
        spent.append(json.loads((at / products.TRAINING).read_text())["evaluations"])
    assert recipe["steps"] > longer["steps"]
    assert abs(spent[0] - spent[1]) <= max(spent) / 2  # of two updates and four, as the late steps fall


def test_half_a_training_is_what_a_shorter_stop_leaves(world: Path) -> None:
    """A run that has gone past a point does not stand for it."""
    given, recipe = values(), values().recipe(Cell(method="sft"), seed=3)
    (whole,) = training.train(given, "sft", recipe, [2])
    half, again = training.train(given, "sft", recipe, [1, 2])
    assert again == whole
    assert json.loads((half[0] / products.TRAINING).read_text())["updates"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["validation/other-7"], "no cell 'validation/other-7'"),
        (["validation/mimr-8"], "no cell 'validation/mimr-8'"),
        (["test/mimr"], "no cell 'test/mimr'"),
        ([], "--group validation or --group test"),
        (["--group", "test", "--cell", "twice"], "test has no cell 'twice'"),
    ],
)
def test_what_is_no_cell_is_a_line(world: Path, words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=f"^[^\n]*{said}[^\n]*$"):
        stage.main(words)


def test_a_cell_that_is_named_and_not_there_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(yaml.safe_dump(CELLS | {"pull": {"of": "nobody", "batches": 1}}))
    with pytest.raises(BadInput, match="no cell 'nobody'"):
        cells.read_cells(path)


# The page


def test_the_page_says_what_there_is_and_what_is_missing(world: Path) -> None:
    Path("docs/results").mkdir(parents=True)
    (world / "docs/results/ladder.json").write_text(json.dumps({"rows": [], "judge": {"name": "nobody"}}))
    for cell in CELLS["validation"]["cells"]:
        stage.make(Place("validation", cell, 7))
    assert "2 cells, 4 missing" in ladder_page.write()
    content = json.loads(Path("docs/results/ladder.json").read_text())
    assert content["missing"] == ["test/base-7", "test/base-8", "test/mimr-7", "test/mimr-8"]
    base, mimr = content["cells"]["validation"]
    assert (base["objective"], mimr["objective"], mimr["seeds"]) == (None, "rerefl", 1)
    scores = pq.read_table(Place("validation", "mimr", 7).path / products.SCORES_TABLE)
    assert mimr["id_sim_strict"]["mean"] == pytest.approx(np.mean(scores["id_sim_strict"].to_pylist()), abs=1e-4)
    assert mimr["by_n"]["3"]["id_sim_strict"]["n"] == 1
    page = Path("docs/results/ladder.md").read_text()
    assert "judged by `band" in page and "| mimr | rerefl |" in page and "`test/mimr-8`" in page
    assert "**Not measured**: `ours` against `mimr`, copy-paste: a cell is missing." in page
    for path in ("ladder-courses.svg", "ladder/base.jpg", "ladder/mimr.jpg"):
        assert f"]({path})" in page and (world / "docs/results" / path).is_file()


def made(name: str, shift: float, seeds: tuple[int, ...] = (7, 8, 9), **head: object) -> report.Made:
    """A cell whose every metric is its case's number plus a shift; twenty people, each in a case."""
    numbers = np.random.default_rng(0).normal(0.5, 0.1, 20)
    names = (*report.SHOWN, *report.EFFECTS)

    def rows(seed: int) -> list[dict]:
        return [
            {"case_id": str(k), "people": [f"p{k}"], "n": 2, "tags": ["open"]}
            | dict.fromkeys(names, number + shift + 0.001 * (seed + k % 3))
            for k, number in enumerate(numbers)
        ]

    heads = {seed: {"method": name, "recipe": {}, "points": []} | head for seed in seeds}
    return report.Made(name, heads, {seed: rows(seed) for seed in seeds})


def test_sentences_are_what_the_numbers_say() -> None:
    every = {
        name: made(name, shift)
        for name, shift in {"base": 0.0, "sft": 0.02, "sir": 0.2, "mimr": 0.2, "ours": 0.1}.items()
    }
    found = report.differences(every)
    verdicts = {(one["a"], one["metric"]): (one["verdict"], one["holds"]) for one in found}
    assert verdicts["ours", "absent_doubled"] == verdicts["ours", "copy_paste"] == ("better", True)
    assert verdicts["ours", "coverage"] == verdicts["ours", "id_sim_strict"] == ("worse", True)
    assert verdicts["mimr", "doubled"] == ("cannot tell", False)
    (one,) = [one for one in found if one["metric"] == "coverage"]
    assert (one["difference"], one["low"], one["high"]) == pytest.approx((-0.1, -0.1, -0.1), abs=1e-6)
    said = "\n".join(claims.sentences(every, found))
    assert "**Shown**: `ours` against `mimr`, copy-paste: better, −0.100 [−0.100, −0.100]." in said
    assert "**Shown to be false**: the likeness of `ours`" in said
    assert "**Shown**: the likeness of `sft` is within 0.03 of that of `base`" in said
    assert "by likeness: base < sft, sft < sir, sir ≈ mimr" in said


@pytest.mark.parametrize(("course", "word"), [((0.3, 0.6, 0.58), "keeps"), ((0.3, 0.6, 0.5), "loses")])
def test_a_long_training_keeps_what_it_had_or_loses_it(course: tuple[float, ...], word: str) -> None:
    cell = made("ours", 0, points=[{"id_sim_strict": value} for value in course])
    (said,) = claims.over_optimised({"ours-long": cell, "ours": cell})
    assert f"`ours-long` {word} what it had" in said


# What is shipped


def test_the_shipped_cells_have_recipes_that_there_are() -> None:
    specified = cells.read_cells(ROOT / cells.CELLS)
    given = training.Values(params.read(ROOT / params.PARAMS), specified)
    for name, cell in specified.cells.items():
        if cell.method != "base":
            assert cell.method in products.TRAINED_METHODS, name
            Recipe.model_validate(given.recipe(cell))
    assert {name for group in (specified.validation, specified.test) for name in group.cells} == specified.cells.keys()


def test_dvc_makes_the_cells_outside_the_default_graph() -> None:
    """Its own file, which DVC asks only by name; and what the root's stages read or write is not among its outs."""
    stages = yaml.safe_load((ROOT / cells.ABLATED / "dvc.yaml").read_text())["stages"]
    for group, one in stages.items():
        assert one["matrix"] == {"cell": f"${{{group}.cells}}", "seed": f"${{{group}.seeds}}"}
        assert one["cmd"] == f"python -m pipelines ablate {group}/${{item.cell}}-${{item.seed}}"
        ((out, how),) = one["outs"][0].items()
        assert (out, how["cache"]) == (f"{cells.ABLATED}/{group}/${{item.cell}}-${{item.seed}}", False)
    assert str(cells.ABLATED) not in (ROOT / "dvc.yaml").read_text()
