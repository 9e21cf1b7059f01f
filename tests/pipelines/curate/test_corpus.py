"""A corpus of thousands of faces, curated by the pipeline and by a plain reading of the rules, one face at a time."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from pipelines.core import products
from pipelines.curate.balance import limit_of_n
from tests.pipelines.made import DIMENSION, PARAMS, Made, curate, diptych, image_id, near, references


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def corpus(rng: np.random.Generator, people: int, pictures: int) -> Made:
    """Albums and videos in which people return, some in several, one everywhere; scenes; diptychs."""
    made, centres, groups = Made(), rng.normal(size=(people, DIMENSION)), people // 6
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    home = rng.integers(0, groups, people)

    def face(person: int) -> tuple:
        vector = centres[person] + rng.uniform(0.05, 0.2) * rng.normal(size=DIMENSION)
        more = {"pose": [float(rng.normal(0, 25)), float(rng.normal(0, 12)), 0], "side_px": float(rng.uniform(30, 200))}
        return f"p{person:04d}", vector / np.linalg.norm(vector), more

    for k in range(people):
        made.person(f"p{k:04d}", centres[k], rng.choice(["train", "test"], p=[0.9, 0.1]), bool(rng.random() < 0.97))
    for k in range(pictures):
        group = int(rng.integers(0, groups))
        local = np.flatnonzero((home == group) | (rng.random(people) < 0.004))
        who = {int(person) for person in rng.choice(local, min(len(local), int(rng.integers(1, 5))), replace=False)}
        who |= {0} if rng.random() < 0.3 else set()
        nobody = [(None, near(1, 0))] if rng.random() < 0.03 else []
        album = {"group": f"group {group}" if group else None, "clip": f"{rng.integers(4)}" if group % 2 else None}
        licence = str(rng.choice(["CC0", "CC BY"]))
        made.picture(f"photo {k}", [face(person) for person in sorted(who)] + nobody, licence=licence, **album)
    for k in range(pictures // 10):
        composite(rng, made, f"scene {k}")
    for k in range(5):
        diptych(made, f"drawn {k}", "train", 20 + 10 * k)
    return made


def composite(rng: np.random.Generator, made: Made, name: str) -> None:
    """Two people in a scene, each made from one photograph and placed like another."""
    photos = Counter(row["person_id"] for row in made.owners)
    who = rng.choice(sorted(person for person, n in photos.items() if n > 2), 2, replace=False)
    chosen = [
        rng.choice([row for row in made.owners if row["person_id"] == person], 2, replace=False) for person in who
    ]
    vector = {row["face_id"]: row["embedding"] for row in made.faces["ingested"]}
    made.picture(name, [(None, vector[source["face_id"]]) for source, _ in chosen], "synthesised", group=f"made/{name}")
    made.scene(name, 2)
    for rank, (person, (source, guide)) in enumerate(zip(who, chosen, strict=True)):
        ids = {"source_face_id": source["face_id"], "source_image_id": source["image_id"]}
        made.placed(name, person, rank, guide_face_id=guide["face_id"], **ids)


class Plain:
    """The rules, as they are written down; `reason`, `pools` and `people` by picture."""

    def __init__(self, made: Made, params: dict) -> None:
        self.params = params
        self.image = {row["image_id"]: row for kind in made.images.values() for row in kind}
        self.face = {row["face_id"]: row for kind in made.faces.values() for row in kind}
        self.vector = {name: row["embedding"].astype(np.float64) for name, row in self.face.items()}
        self.scenes = {row["image_id"] for row in made.scenes}
        self.in_picture = defaultdict(list)
        for name, row in self.face.items():
            self.in_picture[row["image_id"]].append(name)
        self.owner = {row["face_id"]: row["person_id"] for row in made.owners}
        self.placed, self.sources = {}, defaultdict(set)
        for row in made.layout:
            (name,) = [name for name in self.in_picture[row["image_id"]] if self.face[name]["box"] == row["box"]]
            self.placed[name], self.owner[name] = row, row["person_id"]
            self.sources[row["image_id"]] |= {row["source_image_id"]} - {None}
        self._read_people(made)
        self.reason, self.pools, self.people = {}, {}, {}
        for picture, row in self.image.items():
            if self.in_picture[picture] and (picture in self.scenes or row not in made.images["synthesised"]):
                self._decide(picture)
        self._cap_people()
        self._cap_numbers()

    def _read_people(self, made: Made) -> None:
        self.split = {name: row["split"] for name, row in made.people.items()}
        self.split |= {row["person_id"]: "train" for row in made.layout if row["source_face_id"] is None}
        self.centre = {name: np.array(row["centre"]) for name, row in made.people.items()}
        for person in self.split.keys() - self.centre.keys():
            total = np.sum([self.vector[name] for name, who in self.owner.items() if who == person], axis=0)
            self.centre[person] = total / np.linalg.norm(total)
        may_stand = sorted(
            name
            for name, person in self.owner.items()
            if self.split[person] and self.placed.get(name, {}).get("role") != "target"
        )
        self.drawn = dict(zip(may_stand, pl.Series(may_stand).hash(self.params["seed"]), strict=True))
        of_person = defaultdict(lambda: defaultdict(list))
        for name in sorted(may_stand, key=self.drawn.get):
            of_person[self.owner[name]][self._group(name)].append(name)
        self.in_group, self.everywhere = {}, {}
        for person, groups in of_person.items():
            self.in_group[person] = {group: self._go_round(names, self._clip) for group, names in groups.items()}
            self.everywhere[person] = self._go_round(itertools.chain(*self.in_group[person].values()), self._group)

    def _group(self, name: str) -> str | None:
        return self.image[self.face[name]["image_id"]]["group"]

    def _clip(self, name: str) -> tuple:
        return self._clip_of_picture(self.face[name]["image_id"])

    def _clip_of_picture(self, picture: str) -> tuple:
        row = self.image[picture]
        return (row["group"], row["clip"]) if row["clip"] is not None else (picture,)

    def _go_round(self, names, heap_of: Callable) -> list[str]:
        """One of each heap, then another of each; within a round as drawn."""
        heaps = defaultdict(list)
        for name in names:
            heaps[heap_of(name)].append(name)
        rounds = itertools.zip_longest(*heaps.values())
        return [name for lap in rounds for name in sorted(filter(None, lap), key=self.drawn.get)]

    def _decide(self, picture: str) -> None:
        names, path = self.in_picture[picture], self.image[picture]["path"]
        self.people[path] = people = [self.owner.get(name) for name in names]
        reasons = [self._face_fault(name, person) for name, person in zip(names, people, strict=True)]
        self.reason[path] = next(filter(None, reasons), None) or self._picture_fault(picture, names, people)
        if not self.reason[path]:
            self.pools[path] = [self._pool(name) for name in names]
            if not all(self.pools[path]):
                low, high = self.params["min_cosine"], self.params["max_cosine"]
                self.reason[path] = f"no reference between {low} and {high}"

    def _face_fault(self, name: str, person: str | None) -> str | None:
        if person is None:
            return "a face of nobody known"
        if not self.split[person]:
            return "a person who is not kept"
        if self.face[name]["side_px"] < self.params["min_side"]:
            return f"a face under {self.params['min_side']} px"
        if self.vector[name] @ self.centre[person] < self.params["min_person_cosine"]:
            return f"a face under {self.params['min_person_cosine']} to its person's centre"
        return None

    def _picture_fault(self, picture: str, names: list[str], people: list[str]) -> str | None:
        if len(names) < self.params["min_people" if picture in self.scenes else "min_people_ingested"]:
            return "too few people"
        if len(names) > self.params["max_people"]:
            return "too many people"
        if len(set(people)) < len(people):
            return "the same person twice"
        if len({self.split[person] for person in people}) > 1:
            return "people of two splits"
        if any(self.vector[a] @ self.vector[b] > 0.4 for a, b in itertools.combinations(names, 2)):
            return "two people over 0.4"
        return None

    def _candidates(self, name: str) -> dict[str, str]:
        group, person, most = self._group(name), self.owner[name], self.params["max_candidates"]
        found = dict.fromkeys(self.in_group[person].get(group, [])[:most], "group") if group else {}
        for other in self.everywhere[person][:most]:
            if group is None or self._group(other) != group:
                found[other] = "corpus"
        if guide := self.placed.get(name, {}).get("guide_face_id"):
            found.setdefault(guide, "corpus")
        return found

    def _pool(self, name: str) -> list[tuple[str, str]]:
        picture, row = self.face[name]["image_id"], self.placed.get(name, {})
        barred = {self._clip_of_picture(other) for other in self.sources[picture] | {picture}}
        made_from = self.vector[row.get("source_face_id") or name]
        candidates = self._candidates(name)
        inside = [
            other
            for other in candidates
            if self._clip(other) not in barred
            and self.params["min_cosine"] <= self.vector[other] @ self.vector[name] <= self.params["max_cosine"]
            and self.vector[other] @ made_from <= self.params["max_source_cosine"]
        ]
        order = dict(zip(inside, pl.Series([name + other for other in inside], dtype=pl.String).hash(7), strict=True))
        chosen, used = [], Counter({(0, 0): 1})
        while inside and len(chosen) < self.params["pool"]:
            best = min(
                inside,
                key=lambda other: (
                    other != row.get("guide_face_id"),
                    candidates[other] == "corpus",
                    used[self._bin(name, other)],
                    order[other],
                ),
            )
            inside.remove(best)
            used[self._bin(name, best)] += 1
            chosen.append((best, candidates[best]))
        return chosen

    def _bin(self, name: str, other: str) -> tuple:
        width = self.params["pose_bin"]["synthesised" if self.face[name]["image_id"] in self.scenes else "ingested"]
        ahead, aside = self.face[name]["pose"][:2], self.face[other]["pose"][:2]
        return tuple(round((b - a) / width) for a, b in zip(ahead, aside, strict=True)) if width else ()

    def _standing(self) -> list[str]:
        paths = [path for path, reason in self.reason.items() if not reason]
        order = pl.Series([f"s{image_id(path)[:16]}" for path in paths]).hash(self.params["seed"])
        return [path for _, path in sorted(zip(order, paths, strict=True))]

    def _cap_people(self) -> None:
        shown, most = Counter(), self.params["max_sets_per_person"]
        for path in self._standing():
            if any(shown[person] == most for person in self.people[path]):
                self.reason[path] = f"a person in over {most} sets"
            else:
                shown.update(self.people[path])

    def _cap_numbers(self) -> None:
        seen, sizes = Counter(), defaultdict(Counter)
        standing = [(path, self.split[self.people[path][0]], len(self.people[path])) for path in self._standing()]
        for _, split, n in standing:
            sizes[split][n] += 1
        for path, split, n in standing:
            seen[split, n] += 1
            if seen[split, n] > limit_of_n(sizes[split], self.params["max_share_of_n"]):
                self.reason[path] = f"over {self.params['max_share_of_n']} of its split with so many people"


@pytest.fixture(scope="module")
def made() -> Made:
    return corpus(np.random.default_rng(3), people=240, pictures=1800)


TIGHT = {
    "max_candidates": 6,
    "max_sets_per_person": 12,
    "max_share_of_n": 0.4,
    "pose_bin": {"ingested": 0, "synthesised": 25},
}


@pytest.mark.parametrize("changes", [{}, TIGHT], ids=["loose", "tight"])
def test_a_corpus_is_curated_as_the_rules_say(made, changes):
    assert len(made.faces["ingested"]) > 4500
    rows = curate(made, **changes)
    plain = Plain(made, PARAMS | changes)
    assert {path: row["reason"] for path, row in rows.items()} == plain.reason
    assert len(set(plain.reason.values())) >= (11 if changes else 8)
    kept = {path: row for path, row in rows.items() if row["keep"]}
    for path, row in kept.items():
        assert row["person_ids"] == plain.people[path]
        assert [references(row, k) for k in range(row["n"])] == plain.pools[path], path
    recalls = Counter(recall for path in kept for pool in plain.pools[path] for _, recall in pool)
    funnel = json.loads((products.CURATED / products.FUNNEL).read_text())
    assert funnel["references_by_recall"] == recalls and min(recalls.values()) > 100
    for split, counts in funnel["by_split_and_n"].items():
        assert counts == Counter(str(row["n"]) for row in kept.values() if row["split"] == split)
    assert funnel["by_split"] == {split: sum(counts.values()) for split, counts in funnel["by_split_and_n"].items()}


def test_threads_and_order_of_the_shards_change_no_byte(made):
    """Faces and pictures of a shard in another order are another input, and the same sets."""
    curate(made)
    first = (products.CURATED / products.SETS_TABLE).read_bytes()
    for rows in (made.owners, made.layout, *made.images.values(), *made.faces.values()):
        rows.reverse()
    curate(made)
    assert (products.CURATED / products.SETS_TABLE).read_bytes() == first
