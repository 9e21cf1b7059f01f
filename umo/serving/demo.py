"""The page of `umo demo`: photographs and a prompt in, pictures out as a judge sees them, base and LoRA side by side.

Uploads lie in Gradio's temporary folder (GRADIO_TEMP_DIR) and are removed `MINUTES` later; nothing of them is logged.
"""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from umo import faces
from umo.customizers import Customizer, Drawing
from umo.customizers.words import unknown_words
from umo.drawing.batches import NAMED, Progress
from umo.drawing.photographs import FINDER, face_square
from umo.errors import BadInput, WorkFailed
from umo.evaluation.cases import Case
from umo.evaluation.judges import NO_FACE, Gallery
from umo.evaluation.scoring import score_case
from umo.faces.base import FaceModel
from umo.generate import generate
from umo.images import ImageError, encode_png, read_image
from umo.reporting.panels import Shown, by_key, draw_panel
from umo.scenes import prompts

MINUTES = 10  # that an upload stays
WAITING = 8  # drawings that may wait; further ones are told that the queue is full
STEPS = 100  # that may be asked for at most
SEEDS = 2**32
PICTURE = "drawn.png"
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # asked of nobody
CSS = """
svg.pictures { width: 100%; height: auto; display: block; font: 600 12px system-ui, "Segoe UI", Roboto, sans-serif; }
svg .halo { fill: none; stroke: #fff; stroke-width: 4; stroke-opacity: 0.75; } svg .line { fill: none; stroke-width: 2; }
svg .tag { fill: #fff; }
.drawings { display: flex; flex-wrap: wrap; gap: 24px; }
.drawings figure { flex: 1 1 300px; max-width: 376px; margin: 0; } .drawings figcaption { margin: 0 0 8px; }
"""
ABOUT = """\
## Draw people from their photographs
A line joins a photograph to the face that the judge ({judge}) matched with it; on it stands how alike the two are. It is
dashed, and the person *missing*, where they are not the same person to the judge (below {threshold:.2f}). Put in only
people who agreed to it. Photographs are removed {minutes} minutes after their upload. {licences}
"""


@dataclass(frozen=True)
class Studio:
    """What draws and judges.

    Attributes:
        lora: name of the LoRA that is on the customizer; None where there is none.
        max_pixels: a larger photograph is refused before it is decoded.
    """

    customizer: Customizer
    judge: FaceModel
    lora: str | None = None
    max_pixels: int = 50_000_000

    def references(self, photographs: Sequence[Path], warn: Callable[[str], object]) -> list[np.ndarray]:
        """Each photograph cut around its largest face, (H, W, 3) uint8 RGB; `warn` hears where there are several.

        Raises BadInput: too few or too many of them, one that cannot be read, or one without a face.
        """
        most = self.customizer.settings.max_references
        if not 1 <= len(photographs) <= most:
            raise BadInput(f"{len(photographs)} photographs: give one to {most}, one of each person")
        return [self._cut(path, f"photograph {k}", warn) for k, path in enumerate(photographs, start=1)]

    def _cut(self, path: Path, name: str, warn: Callable[[str], object]) -> np.ndarray:
        if not path.exists():
            raise BadInput(f"{name}: is no longer here (kept for {MINUTES} minutes): upload it again")
        try:
            picture = read_image(path, self.max_pixels)
        except ImageError as error:
            raise BadInput(f"{name}: {error}") from error
        found = len(faces.load(FINDER).detect([picture])[0])
        if not found:
            raise BadInput(f"{name}: {NO_FACE}")
        if found > 1:
            warn(f"{name}: {found} faces; the largest is taken")
        return picture[face_square(picture, self.customizer.settings.reference_crop, name)]

    def draw(
        self, references: Sequence[np.ndarray], prompt: str, seed: int, how: Drawing, progress: Progress | None = None
    ) -> Iterator[tuple[str, Image.Image]]:
        """Who drew it, and the picture: the base's, then from the same noise that with the LoRA, where there is one."""
        ways = [(f"base: {self.customizer.name}", self.customizer.without_lora if self.lora else nullcontext)]
        if self.lora:
            ways.append((f"LoRA: {self.lora}", nullcontext))
        for name, way in ways:
            with way():
                (picture,) = generate(
                    self.customizer, prompt, references, (seed,), how, crop=False, progress=progress
                )
            yield name, picture

    def show(self, references: Sequence[np.ndarray], prompt: str, name: str, picture: Image.Image) -> str:
        """HTML: a picture below its references as the judge matches them, and its scores in words."""
        photos = [f"reference {k}.png" for k in range(1, len(references) + 1)]
        case = Case("", prompt, tuple((photo,) for photo in photos), (PICTURE,), None, None)
        with TemporaryDirectory(prefix="umo-demo-") as folder:
            root = Path(folder)
            for path, image in zip([*photos, PICTURE], [*references, np.asarray(picture)], strict=True):
                (root / path).write_bytes(encode_png(image))
            (row,) = score_case(case, Gallery(self.judge, root)).rows
            shown = Shown(name, by_key([row]), root, root)
            svg = draw_panel(case, shown, (case.case_id, 0), self.judge.same_person_cosine).svg
        head, words = html.escape(name), html.escape(in_words(row))
        return f"<figure><figcaption><b>{head}</b></figcaption>{svg}<p>{words}</p></figure>"

    def unknown(self, prompt: str) -> str | None:
        """What is said of a prompt of which the base does not know most words."""
        (words,) = unknown_words(self.customizer, [prompt])
        named = ", ".join(list(dict.fromkeys(words))[:NAMED])
        return f"{self.customizer.name} does not know most words of the prompt: {named}" if words else None


def in_words(row: Mapping[str, Any]) -> str:
    """A row of `records.SCORES` for people."""
    if row["n_faces"] is None:
        return f"not judged: {row['error']}"
    apart = "" if row["id_conf"] is None or row["n"] < 2 else f", kept apart {row['id_conf']:.2f}"
    found = f"{row['covered']} of {row['n']} recognised, {row['duplicated']} drawn twice, {row['extra']} strangers"
    return f"likeness {row['id_sim_strict']:.2f}{apart}; {found}"


def suggested(n: int) -> str:
    """A prompt of n people that the embedded base knows."""
    n = min(max(n, 1), len(prompts.ORDINALS))
    return prompts.open_prompt(1, "plain blue") if n == 1 else prompts.prompt([k / n for k in range(n)], "plain blue")


def _suggest(gallery: Sequence[tuple[str, Any]] | None, prompt: str) -> str:
    """The suggestion for so many photographs, in place of another suggestion; what somebody wrote stays."""
    known = {suggested(n) for n in range(1, len(prompts.ORDINALS) + 1)}
    return suggested(len(gallery or ())) if prompt in known or not prompt else prompt


def create_page(studio: Studio, licences: str) -> gr.Blocks:
    """The page; one picture is drawn at a time, and a client that goes away costs at most the one at hand."""
    settings = studio.customizer.settings

    def draw(
        gallery: Sequence[tuple[str, Any]] | None,
        prompt: str,
        seed: float | None,
        steps: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[str]:
        try:
            if not prompt.strip() or seed is None:
                raise BadInput("say what to draw, and give a seed")
            references = studio.references([Path(path) for path, _ in gallery or ()], gr.Warning)
            if unknown := studio.unknown(prompt):
                gr.Warning(f"{html.escape(unknown)}; it cannot draw what they say")
            figures = ""
            drawn = studio.draw(
                references, prompt, int(seed), Drawing(steps=steps), lambda done, of: progress((done, of), unit="steps")
            )
            for name, picture in drawn:
                figures += studio.show(references, prompt, name, picture)
                yield f'<div class="drawings">{figures}</div>'
        except (BadInput, WorkFailed) as error:
            raise gr.Error(html.escape(str(error)), title="Not drawn", print_exception=False) from error

    about = ABOUT.format(
        judge=studio.judge.name, threshold=studio.judge.same_person_cosine, minutes=MINUTES, licences=licences
    )
    with gr.Blocks(title="umo", analytics_enabled=False, delete_cache=(60, 60 * MINUTES)) as page:
        gr.Markdown(about)
        with gr.Row():
            with gr.Column(scale=2):
                label = f"Photographs: one of each person in the prompt's order, {settings.max_references} at most"
                photographs = gr.Gallery(label=label, columns=3, height=220, sources=["upload"], buttons=[])
                prompt = gr.Textbox(suggested(1), label="Prompt", lines=3, max_length=2000)
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS)
                    most = max(STEPS, settings.steps)
                    steps = gr.Slider(1, most, settings.steps, step=1, label="Steps")
                button = gr.Button("Draw", variant="primary")
            with gr.Column(scale=3):
                shown = gr.HTML(label="Pictures", min_height=400)
        hidden = {"api_visibility": "private"}
        photographs.change(
            _suggest, [photographs, prompt], prompt, queue=False, show_progress="hidden", api_visibility="private"
        )
        button.click(
            draw, [photographs, prompt, seed, steps], shown, concurrency_limit=1, api_visibility="private"
        )
    return page.queue(max_size=WAITING)


def listen(page: gr.Blocks, host: str, port: int, max_mb: int) -> None:
    """Serve the page until `page.close()`, asking no other host for anything.

    Raises BadInput: the port is taken, or the host is none of this machine.
    """
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            max_file_size=f"{max_mb}mb",
            theme=gr.themes.Default(**FONTS),
            css=CSS,
        )
    except OSError as error:
        raise BadInput(f"{host}:{port}: is taken, or not this machine's; choose another --port or --host") from error
