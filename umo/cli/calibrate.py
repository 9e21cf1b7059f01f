"""`umo calibrate`."""

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS.csv", help="Photographs and who is in them.")],
    faces: Annotated[str, typer.Option(help="The face model.")],
    out: Annotated[Path, typer.Option(help="File for the calibration.")],
    held_out: Annotated[
        Path | None, typer.Option(metavar="PHOTOS.csv", help="Other people, to try the threshold on.")
    ] = None,
) -> None:
    """Fit a face model's same_person_cosine on photographs of known people."""
    from umo.faces import calibration

    calibration.calibrate_command(photos, faces, out, held_out)
