"""Prompts read back."""

import numpy as np
import pytest

from umo.scenes.captions import caption
from umo.scenes.prompts import diptych_prompt, open_prompt, places, prompt, read_places, scene_prompt


@pytest.mark.parametrize("n", range(1, 7))
def test_places_are_read_as_they_were_written(n):
    generator = np.random.default_rng(n)
    for _ in range(50):
        centres = generator.random(n).tolist()
        ground = prompt(centres, "plain blue")
        for text in (prompt(centres), ground, scene_prompt("A film still of", "{people} on a ridge", centres)):
            found = read_places(text, n)
            assert np.argsort(found).tolist() == np.argsort(centres).tolist()
            assert places(found) == places(centres), "a single person's third, too"
        assert read_places(caption("two people: one laughs", centres), n) == read_places(ground, n)


@pytest.mark.parametrize(
    "text",
    [
        "A photo of two people.",
        diptych_prompt("A film still of", ("{people} on a ridge", "{people} in a garden"), 2),
        "Two people: the first person on the left and the second person on the left.",
        "Two people: the first person on the left and the second person in the middle.",
        "Two people: the first person on the left and the first person on the right.",
        "Two people: the second person on the left and the first person on the right.",
        "Two people: the first person first from the left and the second person second from the left.",
        "Two people: not the first person on the left and the second person on the right.",
        "Two people: the first person on the left, and the second person on the right of her.",
        "",
    ],
)
def test_what_is_not_written_so_is_not_read(text):
    assert read_places(text, 2) is None


def test_another_number_of_people_is_not_read():
    assert read_places(prompt([0.1, 0.9]), 3) is None
    assert read_places(prompt([0.1, 0.9]), 1) is None
    seven = ", ".join(["the first person on the left"] * 7)
    assert read_places(f"Seven people: {seven}.", 7) is None


@pytest.mark.parametrize("n", range(1, 7))
def test_an_open_prompt_says_the_same_but_for_who_stands_where(n):
    centres = np.linspace(0.1, 0.9, n).tolist()
    for background in (None, "striped yellow"):
        said = open_prompt(n, background)
        assert prompt(centres, background) == f"{said[:-1]}: {places(centres)}."
        assert all(read_places(said, count) is None for count in range(1, 7))
    assert open_prompt(2, "plain blue") == "A photo of two people in front of a plain blue background."
