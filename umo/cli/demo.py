"""`umo demo`."""

import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from umo.cli.serve import LOOPBACK
from umo.devices import Precision
from umo.errors import BadInput


def demo(
    model: Annotated[
        str, typer.Option(help="A base: a diffusers folder, or its name on the Hub, ORG/NAME or ORG/NAME@REVISION.")
    ] = "models/tiny-uno",
    lora: Annotated[Path | None, typer.Option(help="A LoRA for the base, drawn beside it from the same seed.")] = None,
    judge: Annotated[str, typer.Option(help="The face model that judges, as umo evaluate takes it.")] = "dlib",
    device: Annotated[str, typer.Option(help="cpu or cuda, of the base.")] = "cpu",
    dtype: Annotated[Precision | None, typer.Option(help="Of the weights; bf16 on cuda, fp32 on cpu without.")] = None,
    host: Annotated[str, typer.Option(help="Where it listens; beyond this machine it needs a proxy with a login.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 7860,
    max_mb: Annotated[int, typer.Option(min=1, help="Megabytes of a photograph.")] = 50,
    max_megapixels: Annotated[int, typer.Option(min=1, max=100, help="Megapixels of a photograph.")] = 50,
) -> None:
    """A page to try a base and a LoRA on: photographs and a prompt in, pictures out with boxes and cosines."""
    with TemporaryDirectory(prefix="umo-demo-") as uploads:
        os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_ANALYTICS_ENABLED": "False"}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes
        try:
            from umo.serving.demo import Studio, create_page, listen
        except ImportError as error:
            raise BadInput(f"the demo needs {error.name}: pip install 'umo[demo]'") from error
        from umo import faces, licences
        from umo.customizers import load
        from umo.customizers.hub import local_folder
        from umo.devices import dtype_of, precision_on

        base = local_folder(model)
        customizer = load(base, lora, device, dtype_of(precision_on(device, dtype)))
        studio = Studio(customizer, faces.load_named(judge), lora and lora.stem, max_megapixels * 10**6)
        terms = licences.line(base, lora)
        if host not in LOOPBACK:
            print(f"warning: whoever reaches {host}:{port} may use it; it asks for no password", file=sys.stderr)
        page = create_page(studio, terms)
        listen(page, host, port, max_mb)
        print(f"http://{host}:{port}", terms, sep="\n", flush=True)
        page.block_thread()
