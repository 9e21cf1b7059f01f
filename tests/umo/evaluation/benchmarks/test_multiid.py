"""MultiID-Bench: two Hungarian matchings, copying, and means without outliers."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.umo.evaluation.benchmarks.conftest import BLUE, GREEN, ORANGE, RED, TEAL, vector
from umo.errors import BadInput
from umo.evaluation.benchmarks.multiid import typical

PINK = (255, 60, 60)
ROWS = {  # id: (subset, references, target, drawn)
    "0001": ("p1", [RED], (ORANGE,), (PINK,)),
    "0002": ("p2", [RED, GREEN], (GREEN, ORANGE), (TEAL, PINK)),
    "0003": ("p2", [RED, GREEN], (GREEN, ORANGE), (TEAL,)),  # somebody is missing: nothing is lost
    "0004": ("p3", [RED, GREEN, BLUE], (TEAL, BLUE, ORANGE), (BLUE, RED, GREEN, PINK)),
}


@pytest.fixture
def root(put, put_json) -> None:
    lists: dict[str, list] = {"p1": [], "p2": [], "p3": []}
    for key, (subset, references, target, _) in ROWS.items():
        folder, names = f"{subset}/untar", [f"{key}_{k}.jpg" for k in range(1, len(references) + 1)]
        real = f"{key}.jpg"
        if subset == "p3":
            folder, names = "p3", [f"refs/person_{k}/{key}_{k}.jpg" for k in range(1, len(references) + 1)]
            real = f"num_{len(references)}/{key}.jpg"
        for name, colour in zip(names, references, strict=True):
            put(f"root/{folder}/{name}", colour, format="PNG")
        put(f"root/{folder}/{real}", *target, format="PNG")
        lists[subset].append({"prompt": f"people of {key}", "image_paths": names, "ori_img_path": real})
    for subset, rows in lists.items():
        put_json(f"root/{subset}.json", rows)


@pytest.fixture
def results(root, put, put_json) -> None:
    for key, (_, _, _, drawn) in ROWS.items():
        put(f"results/{key}/out.jpg", *drawn, format="PNG")
        put_json(f"results/{key}/meta.json", {"prompt": f"people of {key}"})


def best(rows: list, columns: list) -> dict[int, int]:
    """By trying all: row -> column of the matching with the largest sum of cosines."""
    count = min(len(rows), len(columns))
    tried = [
        dict(zip(some, other, strict=True))
        for some in itertools.combinations(range(len(rows)), count)
        for other in itertools.permutations(range(len(columns)), count)
    ]
    return max(tried, key=lambda pairs: sum(vector(rows[i]) @ vector(columns[j]) for i, j in pairs.items()))


def angle(a: tuple, b: tuple) -> float:
    return float(np.arccos(np.clip(vector(a) @ vector(b), -1, 1)))


def expected(subset: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in ("sim_gt", "sim_ref", "non_matched", "copy_geo")}
    for of, references, target, drawn in ROWS.values():
        if of != subset:
            continue
        to_real, to_reference = best(list(target), list(drawn)), best(references, list(drawn))
        found["sim_gt"].append(np.mean([vector(target[i]) @ vector(drawn[j]) for i, j in to_real.items()]))
        found["sim_ref"].append(np.mean([vector(references[i]) @ vector(drawn[j]) for i, j in to_reference.items()]))
        others = [
            vector(a) @ vector(b)
            for i, a in enumerate(references)
            for j, b in enumerate(drawn)
            if to_reference.get(i) != j
        ]
        found["non_matched"] += [np.mean(others)] if others else []
        if len(drawn) == len(target) == len(references):
            real_of = {j: target[i] for i, j in to_real.items()}
            reference_of = {j: references[i] for i, j in to_reference.items()}
            found["copy_geo"].append(
                np.mean(
                    [
                        (angle(face, real_of[j]) - angle(face, reference_of[j])) / angle(real_of[j], reference_of[j])
                        if angle(real_of[j], reference_of[j]) >= 1e-6
                        else 0
                        for j, face in enumerate(drawn)
                    ]
                )
            )
    return found


def test_all_four_are_those_of_the_published_script(results, scored) -> None:
    result = scored("multiid")
    found = result["benchmark"]["published"]
    for subset in ("p1", "p2", "p3"):
        for name, values in expected(subset).items():
            mean = pytest.approx(np.mean(values), abs=1e-5) if values else None
            assert (found[f"{name}/{subset}"]["mean"], found[f"{name}/{subset}"]["n"]) == (mean, len(values)), name
    assert found["copy_geo/p2"]["skipped"] == {"numbers of faces differ": 1}
    assert found["non_matched/p1"]["skipped"] == {"one person": 1}
    strict = result["by_tag"]["p2"]["id_sim_strict"]["mean"]
    cosines = [vector(PINK) @ vector(RED), vector(TEAL) @ vector(GREEN), 0, vector(TEAL) @ vector(GREEN)]
    assert strict == pytest.approx(np.mean(cosines), abs=1e-5)


def test_failures_are_skipped_as_published_and_cost_the_strict_number(results, scored, tmp_path: Path, put) -> None:
    put("results/0001/out.jpg", format="PNG")
    (tmp_path / "results/0002/out.jpg").unlink()
    result = scored("multiid")
    found = result["benchmark"]["published"]
    assert found["sim_gt/p1"] == {"mean": None, "n": 0, "skipped": {"no face in the picture": 1}}
    assert found["sim_gt/p2"]["skipped"] == {"no picture": 1} and found["sim_gt/p2"]["n"] == 1
    assert result["by_tag"]["p1"]["id_sim_strict"]["mean"] == 0
    assert result["id_sim_strict"]["n"] == 4


def test_a_mean_leaves_outliers_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.normal(size=rng.integers(1, 30)) ** 3
        low, high = (float(np.quantile(values, share)) for share in (0.25, 0.75))
        kept = [v for v in values if low - 1.5 * (high - low) <= v <= high + 1.5 * (high - low)]
        assert typical(values) == pytest.approx(np.median(values) if len(kept) < len(values) / 2 else np.mean(kept))
    assert typical([0.1, 0.1, 0.1, 0.1, 0.9]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "results/0002").rename(folder / "results/two"), "two: no result of this benchmark"),
        (
            lambda folder: [path.rename(path.with_name(f"x{path.name}")) for path in (folder / "results").iterdir()],
            r"no folder of it is named as an item \(0001\)",
        ),
        (
            lambda folder: (folder / "results/0001/meta.json").write_text('{"prompt": "something else"}'),
            "its prompt is another than the item's",
        ),
        (
            lambda folder: [(folder / f"root/p{k}.json").unlink() for k in (1, 2, 3)],
            "none of p1.json, p2.json, p3.json",
        ),
        (lambda folder: (folder / "root/p3/num_3/0004.jpg").unlink(), r"1 pictures are missing, the first .*0004.jpg"),
        (lambda folder: (folder / "results").rename(folder / "r"), "no such folder of results"),
    ],
)
def test_other_layouts_are_refused(results, scored, tmp_path: Path, spoil, reason: str) -> None:
    spoil(tmp_path)
    with pytest.raises(BadInput, match=reason):
        scored("multiid")


def test_two_items_of_one_name_are_refused(results, scored, put_json) -> None:
    row = {"prompt": "a", "image_paths": ["0001_1.jpg"], "ori_img_path": "0001.jpg"}
    put_json("root/p1.json", [row, row])
    with pytest.raises(BadInput, match="two items have a target named 0001"):
        scored("multiid")


def test_pictures_are_jpeg_whatever_their_size(put, tmp_path: Path) -> None:
    from umo.evaluation.benchmarks import BENCHMARKS
    from umo.evaluation.benchmarks.base import Item

    real, one = put("real.jpg", RED), put("one.jpg", RED)
    item = Item("0009", "p1", 'they say "hi"', (one,), (0,), real)
    BENCHMARKS["multiid"].arrange(item, [put("drawn.png", GREEN)], tmp_path / "results")
    made = tmp_path / "results/0009"
    assert {path.name for path in made.iterdir()} == {"out.jpg", "ori.jpg", "ref_1.jpg", "meta.json"}
    assert Image.open(made / "out.jpg").format == "JPEG"
    assert BENCHMARKS["multiid"].drawn([item], tmp_path / "results", tmp_path) == [(made / "out.jpg",)]
