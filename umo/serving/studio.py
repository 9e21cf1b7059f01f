"""What `umo demo` draws and judges: one picture of some photographs, with the base or with a LoRA on it."""

import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from umo import faces, licences
from umo.customizers import Customizer, Drawing, load
from umo.customizers.hub import local_folder
from umo.customizers.words import unknown_words
from umo.devices import dtype_of, precision_on
from umo.drawing.batches import NAMED
from umo.drawing.photographs import FINDER, face_square
from umo.errors import BadInput
from umo.evaluation.cases import Case
from umo.evaluation.judges import NO_FACE, Gallery
from umo.evaluation.scoring import score_case
from umo.faces.base import FaceModel
from umo.generate import generate
from umo.images import ImageError, encode_png, read_image
from umo.reporting.panels import Shown, by_key, draw_panel
from umo.serving.apart import Asked, Known, Loading, Said

DRAWN = "drawn.png"


@dataclass(frozen=True)
class Studio:
    """A base, perhaps with a LoRA, and a judge.

    Attributes:
        lora: name of the LoRA on the customizer; None where there is none.
        max_pixels: a larger photograph is refused before it is decoded.
    """

    customizer: Customizer
    judge: FaceModel
    lora: str | None = None
    max_pixels: int = 50_000_000

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pictures that it draws from one seed."""
        return (f"base: {self.customizer.name}", *([f"LoRA: {self.lora}"] if self.lora else []))

    def draw(self, asked: Asked, say: Callable[[Said], None]) -> None:
        """Draw a picture, the base's with the LoRA switched off; judge it and say so.

        Raises:
            BadInput: too few or too many photographs, or one that cannot be read, is too large or shows no face.
            WorkFailed: the picture came out as not finite.
        """

        def warn(text: str) -> None:
            if asked.rank == 0:  # once
                say(Said("warning", text))

        references = self.references(asked.photographs, warn)
        (unknown,) = unknown_words(self.customizer, [asked.prompt])
        if unknown:
            named = ", ".join(list(dict.fromkeys(unknown))[:NAMED])
            warn(
                f"{self.customizer.name} does not know most words of the prompt: {named}; it cannot draw what they say"
            )
        with self.customizer.without_lora() if self.lora and asked.rank == 0 else nullcontext():
            (picture,) = generate(
                self.customizer,
                asked.prompt,
                references,
                (asked.seed,),
                Drawing(steps=asked.steps),
                crop=False,
                progress=lambda done, of: say(Said("done", done / of)),
            )
        say(Said("figure", self.figure(references, asked.prompt, self.names[asked.rank], picture)))

    def references(self, photographs: Sequence[Path], warn: Callable[[str], None]) -> list[np.ndarray]:
        """Each cut around its largest face, (H, W, 3) uint8 RGB: so both base and judge see it."""
        settings, cut = self.customizer.settings, []
        if not 1 <= len(photographs) <= settings.max_references:
            raise BadInput(f"{len(photographs)} photographs: give 1 to {settings.max_references}, one of each person")
        for k, path in enumerate(photographs, start=1):
            name = f"photograph {k}"
            try:
                picture = read_image(path, self.max_pixels)
            except ImageError as error:
                raise BadInput(f"{name}: {error}") from error
            found = len(faces.load(FINDER).detect([picture])[0])
            if not found:
                raise BadInput(f"{name}: {NO_FACE}")
            if found > 1:
                warn(f"{name}: {found} faces; the largest is taken")
            cut.append(picture[face_square(picture, settings.reference_crop, name)])
        return cut

    def figure(self, references: Sequence[np.ndarray], prompt: str, name: str, picture: Image.Image) -> str:
        """HTML: a picture below its references as the judge matches them, and its scores in words."""
        photos = [f"photograph {k}" for k in range(1, len(references) + 1)]
        case = Case(DRAWN, prompt, tuple((photo,) for photo in photos), (DRAWN,), None, None)
        with TemporaryDirectory(prefix="umo-demo-") as folder:
            root = Path(folder)
            for path, image in zip([*photos, DRAWN], [*references, np.asarray(picture)], strict=True):
                (root / path).write_bytes(encode_png(image))
            (row,) = score_case(case, Gallery(self.judge, root)).rows
            shown = Shown(name, by_key([row]), root, root)
            svg = draw_panel(case, shown, (case.case_id, row["seed"]), self.judge.same_person_cosine).svg
        head, words = html.escape(name), html.escape(in_words(row))
        return f"<figure><figcaption>{head}</figcaption>{svg}<p>{words}</p></figure>"


def in_words(row: Mapping[str, Any]) -> str:
    """A row of `records.SCORES` for people."""
    if row["n_faces"] is None:
        return f"not judged: {row['error']}"
    apart = "" if row["n"] < 2 or row["id_conf"] is None else f", kept apart {row['id_conf']:.2f}"
    extra = f"{row['extra']} stranger{'s' * (row['extra'] != 1)}"
    found = f"{row['covered']} of {row['n']} recognised, {row['duplicated']} drawn twice, {extra}"
    return f"likeness {row['id_sim_strict']:.2f}{apart}; {found}"


def open_studio(what: Loading) -> tuple[Studio, Known]:
    """Loaded, and what a page says of it; raises BadInput as `umo.customizers.load` and `umo.faces.load_named` do."""
    base, lora = local_folder(what.model), what.lora
    customizer = load(base, lora, what.device, dtype_of(precision_on(what.device, what.dtype)))
    judge = faces.load_named(what.judge)
    name = lora.resolve().name.removesuffix(".safetensors") if lora else None
    studio, settings = Studio(customizer, judge, name, what.max_pixels), customizer.settings
    terms = licences.line(base, lora)
    return studio, Known(
        studio.names, settings.max_references, settings.steps, judge.name, judge.same_person_cosine, terms
    )
