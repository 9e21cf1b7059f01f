"""What of a model's text becomes a caption: no name gets through, honest sentences do."""

import pytest

from umo.scenes.captions import caption, fault, first_sentence, name_words


def test_words_of_paths_labels_and_credits():
    assert name_words("Anna_Smith/IMG_0042.JPG", None, "photo by José O'Neil") == {"anna", "smith", "josé", "neil"}
    assert name_words("holidays/AnnaSmith2.png", "Bo") == {"holidays", "anna", "smith", "bo"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("  Two men talk at a bar. They laugh.\n", "Two men talk at a bar"),
        ('"A calm lake at dusk!"', "A calm lake at dusk"),
        ("\n\nPeople on a hill, 2.5 m apart\nSecond line", "People on a hill, 2.5 m apart"),
        ("", ""),
    ],
)
def test_the_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "Two people hike along a ridge in the morning light",
        "a person in a red coat stands near the window",
        "Black-and-white portrait of three men in front of a wall",
    ],
)
def test_honest_sentences_are_captions(sentence):
    assert fault(sentence, name_words("s12/4.pgm", "s12", "AT&T Laboratories Cambridge")) is None


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("Carla and a friend sit on a bench", "a capital"),
        ("Two people, one of them Bo, sit on a bench", "a capital"),
        ("A man who looks like a Jones on a bench", "a capital"),
        ("A man called McAdam sits on a bench", "a capital"),
        ("two people and smith on a bench", "a word of a label"),
        ("two people with anna's dog on a bench", "a word of a label"),
        ("a lake", "not of 3 to 60 words"),
        ("", "not of 3 to 60 words"),
        ("word " * 61, "not of 3 to 60 words"),
        ("zwei Männer auf einer Bank", "letters that are not plain Latin"),
        ("two people and \u674e\u660e on a bench", "letters that are not plain Latin"),
        ("A woman, A Jones, on a bench", "a capital"),
    ],
)
def test_what_could_hold_a_name_is_refused(sentence, reason):
    assert fault(sentence, name_words("Anna_Smith/1.jpg")).startswith(reason)


def test_a_caption_ends_with_who_stands_where():
    expected = "Two people on a ridge: the first person on the left and the second person on the right."
    assert caption("two people on a ridge", [0.2, 0.9]) == caption("Two people on a ridge,", [0.1, 0.4]) == expected
    assert caption("two people on a ridge", [0.9, 0.2]).endswith(
        "the first person on the right and the second person on the left."
    )
    assert caption("two people on a ridge,") == "Two people on a ridge."
