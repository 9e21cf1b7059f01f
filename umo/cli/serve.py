"""`umo serve`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from umo.errors import BadInput

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    judge: Annotated[str, typer.Option(help="The face model that judges, as umo evaluate takes it.")] = "dlib",
    calibration: Annotated[Path | None, typer.Option(help="Its calibration, instead of its own.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    host: Annotated[str, typer.Option(help="Where it listens; beyond this machine it needs a proxy with a login.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 8000,
    max_mb: Annotated[int, typer.Option(min=1, help="Megabytes of a request.")] = 100,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Megapixels of a picture.")] = 50,
    max_pictures: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = 500,
    max_seconds: Annotated[float, typer.Option(min=1, help="That an upload may take, and then its scoring.")] = 60,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; others are turned away (429).")] = 8,
) -> None:
    """Score pictures over HTTP: POST /score, described in /openapi.json. Nothing that is sent is kept."""
    try:
        import uvicorn

        from umo.serving.app import create_app
    except ImportError as error:
        raise BadInput(f"the service needs {error.name}: pip install 'umo[serve]'") from error
    from umo import faces
    from umo.serving.work import Limits

    model = faces.load_named(judge, device, calibration=calibration)
    limits = Limits(max_mb * 10**6, max_megapixels * 10**6, max_pictures, max_seconds, waiting)
    if host not in LOOPBACK:
        print(f"warning: whoever reaches {host}:{port} may use it; it asks for no password", file=sys.stderr)
    print(f"judge {model.name}: http://{host}:{port}/score", flush=True)
    uvicorn.run(create_app(model, limits), host=host, port=port, log_level="warning", access_log=False)
