"""The README says what is so: short, with the numbers of the ladder, and commands and links that lead somewhere."""

import json
import re
import shlex

import typer
from PIL import Image

from pipelines.__main__ import STAGES, TOOLS
from pipelines.core.shards import ROOT
from umo.cli import app

README = (ROOT / "README.md").read_text()
COLUMNS = ("id_sim_strict", "id_conf", "coverage")


def commands() -> list[list[str]]:
    """Every command in a shell block, without its comment, as words."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [shlex.split(part, comments=True) for line in lines for part in line.split(" && ") if part]


def estimate(found: dict) -> str:
    mean, low, high = (f"{found[key]:.2f}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def test_it_is_short() -> None:
    assert len(README.split()) <= 900


def test_the_table_has_the_numbers_of_the_ladder() -> None:
    ladder = {row["method"]: row for row in json.loads((ROOT / "docs/results/ladder.json").read_text())["rows"]}
    rows = re.findall(r"^\| \**`(\w+)`:.*?\| (.+) \|$", README, re.MULTILINE)
    assert {"base", "sft", "mimr"} <= {method for method, _ in rows}
    for method, cells in rows:
        assert cells.split(" | ") == [estimate(ladder[method][column]) for column in COLUMNS], method


def test_the_cost_of_the_reward_is_what_was_compared() -> None:
    found = json.loads((ROOT / "runs/evaluate/compare.json").read_text())["mimr-base"]
    found |= found.pop("side_effects")
    page = (ROOT / "docs/concepts/training.md").read_text()
    rows = re.findall(r"^\| [^|]*`(\w+)`[^|]*\| ([+−][^|]+) \| (better|worse)", page, re.MULTILINE)
    assert len(rows) > 4
    for metric, said, verdict in rows:
        one = found[metric]
        numbers = [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d\.\d+", said)]
        digits = len(re.findall(r"\.(\d+)", said)[0])
        assert numbers == [round(one[key], digits) for key in ("difference", "low", "high")], metric
        assert verdict == one["verdict"], metric


def test_every_command_is_one() -> None:
    known = typer.main.get_command(app).commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = commands()
    assert len(found) > 8
    for words in found:
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "umo":
            options = {name for parameter in known[words[1]].params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, words
        elif words[:3] == ["python", "-m", "pipelines"]:
            assert words[3] in (*STAGES, *TOOLS), words
        else:
            assert words[0] in ("git", "cd", "dvc"), words


def test_links_and_the_picture_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
    width, height = Image.open(ROOT / "docs/images/before-after.jpg").size
    assert width > height  # wide enough to leave the commands above the fold
