"""The benches of the data engine on a small corpus: identify against the truth, and what the benches make of it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench import curate_growth, curate_million, engine, rethreshold_million
from bench.engine import Cost, Workspace
from pipelines.core import products

FACES = 20_000


@pytest.fixture(scope="module")
def identified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Cost]:
    found = engine.workspace(FACES, tmp_path_factory.mktemp("corpora"))
    return found, found.stage("identify")


def test_people_of_the_corpus_are_found(identified: tuple[Workspace, Cost]) -> None:
    """Of 2,000 people in 250 albums and videos; the same, computed here from the pairs of a tenth of the people."""
    found, _ = identified
    right = found.agreement()
    assert right["clusters"]["precision"] >= 0.99
    assert right["kept"]["precision"] >= 0.99
    assert right["clusters"]["b_cubed_precision"] >= 0.99
    assert right["clusters"]["recall"] >= 0.96
    assert 0.8 <= right["kept"]["recall"] <= right["clusters"]["recall"]
    faces = pl.read_parquet(found.path / products.PEOPLE / products.PEOPLE_FACES_TABLE).drop_nulls("person_id")
    some = faces.join(found.truth.filter((pl.col("person") >= 0) & (pl.col("person") % 10 == 0)), on="face_id")
    person, given = some["person"].to_numpy(), some["person_id"].rank("dense").to_numpy()
    upper = np.triu(np.ones((len(some), len(some)), bool), 1)
    together, same = given[:, None] == given, person[:, None] == person
    assert (together & same & upper).sum() / (together & upper).sum() >= 0.99
    assert (together & same & upper).sum() / (same & upper).sum() == pytest.approx(
        right["clusters"]["recall"], abs=0.02
    )


def test_near_copies_are_found_and_the_sharper_kept(identified: tuple[Workspace, Cost]) -> None:
    found, _ = identified
    faces = pl.read_parquet(found.path / products.PEOPLE / products.PEOPLE_FACES_TABLE)
    dropped = faces.filter(pl.col("reason") == "near duplicate of another picture")
    assert dropped.height == pytest.approx(0.03 * FACES, rel=0.02)
    measured = products.measured_images(found.path / products.MEASURED_PHOTOS).select("image_id", "sharpness")
    assert dropped.join(measured, on="image_id")["sharpness"].max() <= 0.025, "copies are blurred"


def test_time_and_memory_are_the_stages(identified: tuple[Workspace, Cost]) -> None:
    _, cost = identified
    assert 0.1 < cost.peak_gib < 4
    assert cost.seconds > 0.5


def test_what_the_benches_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 2,000 faces, identified once; for `curate`, a file of its threshold stands for the sets."""

    def stage(self: Workspace, name: str) -> Cost:
        sets = self.path / products.CURATED / products.SETS_TABLE
        sets.parent.mkdir(exist_ok=True)
        if name == "identify":
            # The memory is this whole process's, with whatever tests ran in it before.
            return Cost(0.5 if ran else run_stage(self, name).seconds, 1.0)
        ran.append(name)
        sets.write_text((self.path / "params.yaml").read_text())
        return Cost(len(self.truth) / 100, 2.0)

    ran: list[str] = []
    run_stage = Workspace.stage
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Workspace, "stage", stage)
    million = curate_million.run(2000)
    assert round(million.value, 4) == max(million.details["ratios"].values())
    assert million.details["ratios"]["memory"] == pytest.approx(2 / 8)
    assert million.details["people"] == pytest.approx(200, abs=5)
    growth = curate_growth.run(2000)
    assert growth.value == pytest.approx((20 + 0.5) / (2 + 0.5))
    assert set(growth.details["stages"]) == {"200", "2,000"}
    again = rethreshold_million.run(2000)
    assert again.value == 20
    monkeypatch.setattr(rethreshold_million, "MIN_COSINE", 0.5)
    assert rethreshold_million.run(2000).value is None, "nothing was changed"
