"""`umo demo`."""

import os
import signal
import socket
import sys
from contextlib import suppress
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
        from umo.serving.apart import Apart, Loading

        studio = Apart(Loading(model, lora, judge, device, dtype, max_megapixels * 10**6))
        try:
            import uvicorn

            from umo.serving.demo import create_app, create_page  # while that loads
        except ImportError as error:
            raise BadInput(f"the demo needs {error.name}: pip install 'umo[demo]'") from error
        known = studio.known()
        app = create_app(create_page(studio, known), max_mb)
        with _listening(host, port) as listener, suppress(KeyboardInterrupt):
            if host not in LOOPBACK:
                print(f"warning: whoever reaches {host}:{port} may use it; it asks for no password", file=sys.stderr)
            print(f"http://{f'[{host}]' if ':' in host else host}:{port}", known.licences, sep="\n", flush=True)
            config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
            uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise BadInput(f"{host}:{port}: {reason}; choose another --port or --host") from error
