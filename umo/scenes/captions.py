"""Captions that name no one: what of a model's text may become part of a prompt; the rules refuse rather too much."""

import re
from collections.abc import Collection, Iterable

from umo.scenes.prompts import places

# May begin a sentence with a capital; any other capitalised word could be somebody's name.
_OPENINGS = """
a an the one two three four five six several some many both each this there here in on at by under behind beside inside
outside near next people persons men women man woman children adults someone everyone young old middle close portrait
photo photograph picture image black
"""
OPENINGS = frozenset(_OPENINGS.split())
# In names of files and folders everywhere, and in honest captions too.
_GENERIC = """
a an and at by for from in of on the to with img image images photo photos picture pictures pic dsc dscn scan face faces
people person crop jpg jpeg png pgm ppm webp bmp tif tiff gif mp4 mkv avi mov frame frames shot video clip test train
validation data set sample target reference avif
"""
GENERIC = frozenset(_GENERIC.split())
MIN_WORDS, MAX_WORDS = 3, 60


def name_words(*texts: str | None) -> set[str]:
    """Words that could name somebody, of labels, paths and credits: two letters or more, in lower case.

    "Anna_Smith/IMG2.jpg" and "AnnaSmith" both give anna and smith.
    """
    apart = (re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text) for text in texts if text)
    return {word for text in apart for word in re.findall(r"[^\W\d_]{2,}", text.lower())} - GENERIC


def first_sentence(text: str) -> str:
    """The first sentence of a model's answer, without its full stop, quotes and line breaks."""
    line = next((line for line in text.strip().splitlines() if line.strip()), "")
    line = line.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    return re.split(r"[.!?](?=\s|$)", line.strip().strip('"').strip(), maxsplit=1)[0].strip().strip('"')


def fault(sentence: str, forbidden: Collection[str] = ()) -> str | None:
    """Why a sentence (of `first_sentence`) is no caption; None for one that may be used.

    Names are refused by two rules: a word that the picture's label, path or credit has too; and a capital letter
    anywhere but at the start of a common opening word. Text in other scripts is refused, for neither rule reads it.
    """
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", sentence)
    if not MIN_WORDS <= len(words) <= MAX_WORDS:
        return f"not of {MIN_WORDS} to {MAX_WORDS} words"
    if not sentence.isascii():
        return "letters that are not plain Latin"
    if name_words(sentence) & set(forbidden):
        return "a word of a label, a path or a credit"
    opening = words[0] if words[0].lower() in OPENINGS else ""
    if re.search(r"[A-Z]", sentence.replace(opening, opening.lower(), 1)):
        return "a capital that could begin a name"
    return None


def caption(sentence: str, centres: Iterable[float] | None = None) -> str:
    """The prompt: what is seen, then (`centres` as in `prompts.prompt`) who stands where; None leaves it open."""
    where = "" if centres is None else f": {places(list(centres))}"
    return f"{sentence[0].upper()}{sentence[1:].rstrip(' :;,')}{where}."
