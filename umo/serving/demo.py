"""The page of `umo demo`: photographs and a prompt in, pictures out as a judge sees them, base and LoRA side by side.

Uploads lie in Gradio's temporary folder (GRADIO_TEMP_DIR) and go `MINUTES` later; nothing of them is logged.
"""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from umo.errors import BadInput, WorkFailed
from umo.scenes import prompts
from umo.serving.apart import Apart, Asked, Known

MINUTES = 10  # that an upload stays
LOOK_AGAIN = 60  # seconds between two looks for old ones
WAITING = 8  # drawings that may wait; further ones are told that the queue is full
STEPS = 100  # that may be asked for
SEEDS = 2**32
CSS = """
svg.pictures { width: 100%; height: auto; display: block; font: 600 12px system-ui, "Segoe UI", Roboto, sans-serif; }
svg .halo { fill: none; stroke: #fff; stroke-width: 4; stroke-opacity: 0.75; }
svg .line { fill: none; stroke-width: 2; }
svg .tag { fill: #fff; }
.drawings { display: flex; flex-wrap: wrap; gap: 24px; }
.drawings figure { flex: 1 1 300px; max-width: 376px; margin: 0; }
.drawings figcaption { font-weight: 600; margin: 0 0 8px; } .drawings p { margin: 8px 0 0; }
"""
ABOUT = """\
## Draw people from their photographs
A line joins a photograph to the face that the judge, {judge}, matched with it; its number says how alike the two are.
Below {threshold:.2f} they are not one person to the judge: the line is dashed, and the person *missing*. Put in only
people who agreed to it. Photographs are removed {minutes} minutes after their upload.
"""

Uploads = Sequence[tuple[str, Any]] | None  # as gr.Gallery gives them: path and caption


def suggested(n: int) -> str:
    """A prompt of n people that the embedded base knows."""
    if n < 2:
        return prompts.open_prompt(1, "plain blue")
    n = min(n, len(prompts.ORDINALS))
    return prompts.prompt([(k + 0.5) / n for k in range(n)], "plain blue")


def suggest(uploads: Uploads, prompt: str) -> str:
    """The suggestion for so many photographs in place of another; what somebody wrote stays."""
    known = {"", *(suggested(n) for n in range(len(prompts.ORDINALS) + 1))}
    return suggested(len(uploads or ())) if prompt in known else prompt


class Page:
    """What its button does."""

    def __init__(self, studio: Apart, known: Known) -> None:
        self.studio, self.known = studio, known

    def draw(
        self,
        uploads: Uploads,
        prompt: str,
        seed: int | None,
        steps: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[str]:
        """HTML with the pictures so far; a client that goes away costs at most the one at hand."""
        figures = ""
        try:
            for rank in range(len(self.known.names)):
                figures += self.one(uploads, prompt, seed, steps, rank, progress)
                yield f'<div class="drawings">{figures}</div>'
        except (BadInput, WorkFailed) as error:
            raise gr.Error(html.escape(str(error)), title="Not drawn", print_exception=False) from error

    def one(self, uploads: Uploads, prompt: str, seed: int | None, steps: int, rank: int, progress: gr.Progress) -> str:
        if not prompt.strip() or seed is None:
            raise BadInput("the prompt or the seed is empty: say what to draw, and from which number")
        photographs = tuple(Path(path) for path, _ in uploads or ())
        if not all(path.exists() for path in photographs):
            raise BadInput(f"a photograph is over {MINUTES} minutes here and was removed: upload it again")
        for kind, value in self.studio.draw(Asked(photographs, prompt, seed, steps, rank)):
            if kind == "error":
                raise value
            if kind == "figure":
                return value
            if kind == "warning":
                gr.Warning(html.escape(value))
            else:
                progress(value, desc=self.known.names[rank])
        raise WorkFailed("no picture came")


def create_page(studio: Apart, known: Known) -> gr.Blocks:
    """The page, with a queue for one picture at a time."""
    about = ABOUT.format(judge=known.judge, threshold=known.threshold, minutes=MINUTES)
    with gr.Blocks(title="umo", analytics_enabled=False, delete_cache=(LOOK_AGAIN, 60 * MINUTES)) as page:
        gr.Markdown(about)
        with gr.Row():
            with gr.Column(scale=2):
                label = f"Photographs: one of each person, up to {known.max_references}, in the prompt's order"
                uploads = gr.Gallery(label=label, columns=3, height=220, sources=["upload"], buttons=[])
                prompt = gr.Textbox(suggested(1), label="Prompt", lines=3, max_length=2000)
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS)
                    steps = gr.Slider(1, max(STEPS, known.steps), known.steps, step=1, label="Steps")
                button = gr.Button("Draw", variant="primary")
            with gr.Column(scale=3):
                drawings = gr.HTML(min_height=400)
        gr.Markdown(html.escape(known.licences))
        uploads.change(
            suggest, [uploads, prompt], prompt, queue=False, show_progress="hidden", api_visibility="private"
        )
        button.click(Page(studio, known).draw, [uploads, prompt, seed, steps], drawings, api_visibility="private")
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def create_app(page: gr.Blocks, max_mb: int) -> FastAPI:
    """The page at /, which asks no other host for anything; `max_mb`: of a photograph."""
    closed = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    return gr.mount_gradio_app(
        FastAPI(**closed),  # type: ignore[arg-type]
        page,
        "/",
        app_kwargs=dict(closed),
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=f"{max_mb}mb",
        ssr_mode=False,
        mcp_server=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )
