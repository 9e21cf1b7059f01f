"""The `umo` command. Exit codes: 0 done, 1 the work failed, 2 bad input or usage; an expected error is one line."""

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from umo.cli.benchmark import benchmark
from umo.cli.calibrate import calibrate
from umo.cli.compare import compare
from umo.cli.demo import demo
from umo.cli.evaluate import evaluate
from umo.cli.generate import generate
from umo.cli.lora import lora
from umo.cli.match import match
from umo.cli.plan import plan
from umo.cli.report import report
from umo.cli.serve import serve
from umo.cli.train import train
from umo.errors import BadInput, WorkFailed
from umo.texts import one_line

app = typer.Typer(
    name="umo",
    help="Matching rewards for multi-identity image customization, and the evaluation that proves them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # no bracket of a path or a help text is markup; a wrong usage is plain lines
    pretty_exceptions_enable=False,
)
for command in (match, evaluate, compare, generate, plan, train, calibrate, report, serve, demo):
    app.command()(command)
app.add_typer(lora)
app.add_typer(benchmark)


def main() -> None:
    """Run the command; an expected error becomes one line on stderr and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (BadInput, WorkFailed) as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; check the path, its permissions and the room on the disk", 1)


def _fail(message: str, exit_code: int) -> None:
    print("umo: " + one_line(message), file=sys.stderr)
    sys.exit(exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"umo {version('umo')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass
