"""`python -m pipelines browse`: a page of thumbnails of people, of what was turned away, and of sets, to look at and to
correct. Not a stage.

It is static HTML in .work/browse, which opens from the file and over `make serve`; it keeps faces, and `forget` removes
it whole. What it shows is bounded (--limit), so that a corpus of a million people costs what is looked at.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.browse import thumbnails
from pipelines.browse.looks import EXAMPLES, Part, Wanted, people, rejected, sets
from pipelines.core.publish import writing
from pipelines.core.shards import WORK
from umo.errors import BadInput
from umo.files import replacing

PAGE = WORK / "browse"
THUMBNAILS = "thumbnails"
ROWS = 50  # on a page
NAMES = {"people": "People", "rejected": "Turned away", "sets": "Sets"}
NOUNS = {"people": "people", "rejected": "reasons", "sets": "sets"}
ABOUT = {
    "index": "Thumbnails of some of the people, of what was turned away and why, and of sets. They are real faces: "
    "this folder is neither in git nor in DVC, and forget removes it.",
    "people": "A row a person, those with the most doubtful face first; in a row the surest face comes first and the "
    "doubtful ones last, by their cosine to the person's centre. split: this face is of somebody else. drop: not to be "
    "used. merge: the most alike other person is the same one. Two picked faces can be called the same person or not.",
    "rejected": "What is not used, by its reason, the most frequent first.",
    "sets": "The target, and the reference of each person.",
}


def main(arguments: Sequence[str]) -> str:
    """Write the page; returns where it is and what is on it.

    Raises:
        BadInput: nobody, or no reason, is as asked for, or there is nothing to show.
        WorkFailed: another one is being written.
    """
    options = _parser().parse_args(arguments)
    if options.limit < 1:
        raise BadInput(f"--limit {options.limit}: write a number from 1")
    return browse(Wanted(options.limit, tuple(dict.fromkeys(options.person)), options.reason))


def browse(wanted: Wanted) -> str:
    """Write what is wanted in place of the page that was there, at one instant; returns and raises as `main`."""
    none = Part()
    parts = {
        "people": none if wanted.reason else people(wanted),
        "rejected": none if wanted.people and not wanted.reason else rejected(wanted),
        "sets": none if wanted.reason else sets(wanted),
    }
    if not any(part.rows for part in parts.values()):
        raise BadInput(next((part.lacking for part in parts.values() if part.lacking), "nothing to show"))
    with writing("browse"), replacing(PAGE) as folder:
        folder.mkdir(parents=True)
        asked = _faces(parts), _pictures(parts)
        written = thumbnails.write(*asked, folder / THUMBNAILS)
        for name, text in _pages(parts, written).items():
            (folder / name).write_text(text, encoding="utf-8")
    shown = ", ".join(f"{len(part.rows):,} of {part.total:,} {NOUNS[kind]}" for kind, part in parts.items())
    lost = len(asked[0] | asked[1]) - len(written)
    more = f", {lost:,} without a picture that can be read" if lost else ""
    return f"{PAGE / 'index.html'}: {shown}; {len(written):,} thumbnails{more}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines browse",
        description=f"Write a page of thumbnails to {PAGE}: people, the most doubtful first; what was turned away, by "
        "reason; sets. Each has its line for datasets/corrections.csv.",
    )
    person = "only this person, and their sets (may be given several times)"
    parser.add_argument("--person", metavar="PERSON_ID", action="append", default=[], help=person)
    parser.add_argument("--reason", metavar="WORDS", default="", help="only what was turned away with these words")
    limit = f"people, sets, and examples of --reason (default: %(default)s; of all reasons, {EXAMPLES} examples each)"
    parser.add_argument("--limit", metavar="N", type=int, default=200, help=limit)
    return parser


def _faces(parts: dict[str, Part]) -> set[str]:
    of_people = [face["face_id"] for row in parts["people"].rows for face in row["faces"]]
    nearest = [row["nearest_face"] for row in parts["people"].rows]
    away = [one["face_id"] for row in parts["rejected"].rows for one in row["examples"]]
    references = [face for row in parts["sets"].rows for face in row["references"]]
    return {*of_people, *nearest, *away, *references} - {None}


def _pictures(parts: dict[str, Part]) -> set[str]:
    away = [one["image_id"] for row in parts["rejected"].rows for one in row["examples"]]
    return {*away, *(row["target_image_id"] for row in parts["sets"].rows)} - {None}


def _pages(parts: dict[str, Part], written: set[str]) -> dict[str, str]:
    """File -> HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    first = {kind: f"{kind}-1.html" for kind, part in parts.items() if part.rows}
    menu = [("Overview", "index.html"), *((NAMES[kind], address) for kind, address in first.items())]
    for number, row in enumerate(parts["rejected"].rows):
        row |= {"number": number, "address": f"rejected-{number // ROWS + 1}.html#reason-{number}"}
    where = {
        row["person_id"]: f"people-{number // ROWS + 1}.html#{row['person_id']}"
        for number, row in enumerate(parts["people"].rows)
    }
    common: dict[str, object] = {"menu": menu, "written": written, "where": where}
    common |= {"rows": [], "parts": [], "before": None, "after": None}
    overview = [(NAMES[kind], NOUNS[kind], part, first.get(kind)) for kind, part in parts.items()]
    index = {"page": "index", "here": "index.html", "title": "What the data is made of", "about": ABOUT["index"]}
    pages = {"index.html": template.render(common | index | {"parts": overview})}
    for kind, part in parts.items():
        count = -(-len(part.rows) // ROWS)
        names = [f"{kind}-{number + 1}.html" for number in range(count)]
        for number, name in enumerate(names):
            title = NAMES[kind] + (f", page {number + 1} of {count}" if count > 1 else "")
            around = {"before": names[number - 1] if number else None, "after": [*names, None][number + 1]}
            here = {"page": kind, "here": name, "title": title, "about": ABOUT[kind]} | around
            pages[name] = template.render(common | here | {"rows": part.rows[number * ROWS : (number + 1) * ROWS]})
    return pages
