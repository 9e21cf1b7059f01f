"""`umo match`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from umo.cli.tables import Json, number, print_json, print_table


def match(
    image: Annotated[str, typer.Argument(help="The drawn picture.")],
    reference: Annotated[list[str], typer.Option("--reference", help="A person's photograph; repeat for each person.")],
    faces: Annotated[str, typer.Option(help="The face model.")] = "opencv_zoo",
    as_json: Json = False,
) -> None:
    """Who is in a picture: cosines, assignment, rewards and metrics, with one network."""
    from umo import faces as face_models
    from umo.evaluation import scoring as evaluation

    found = evaluation.diagnose(reference, image, face_models.load_named(faces))
    if as_json:
        print_json(found)
        return
    _print_cosines(found)
    _print_values(found)
    if not found["n_faces"]:
        print(f"{image}: no face found; every reference is missing and the rewards are 0")


def _print_cosines(found: Mapping[str, Any]) -> None:
    def cells(cosines: Sequence[float], assigned: int) -> list[str]:
        return [f"{cosine:.3f}" + (" *" if face == assigned else "  ") for face, cosine in enumerate(cosines)]

    matches = zip(found["references"], found["cosines"], found["assignment"], strict=True)
    print_table(
        f"cosine ({found['faces']}); * is assigned, the same person from {found['same_person_cosine']:.3f}",
        ["reference", *(f"face {face}" for face in range(found["n_faces"]))],
        ([path, *cells(cosines, assigned)] for path, cosines, assigned in matches),
    )


def _print_values(found: Mapping[str, Any]) -> None:
    numbers = ("sir", "mimr", "id_sim_strict", "id_conf_strict", "blend", "collapse", "id_sim", "id_conf")
    counts = ("covered", "missing", "absent", "surplus", "doubled", "duplicated", "extra")
    rows = [(name, number(found[name])) for name in numbers] + [(name, str(found[name])) for name in counts]
    print_table(found["image"], ["", "value"], rows)
