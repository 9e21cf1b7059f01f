"""What each method hands to the judge."""

import json

import pytest

from pipelines import generate, products
from umo.cases import Case, read_cases
from umo.errors import WorkFailed


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


@pytest.mark.parametrize("method", ["target", "pasted", "base", "shuffled"])
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
    for stage in ("generate", "evaluate"):
        done = workspace.stage(stage, "--of", "base")
        assert done.returncode == 2
        assert (
            f"1 people of the cases were seen in training by models/tiny-uno (first {cases[0].people[0]}" in done.stderr
        )
