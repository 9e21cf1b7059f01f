"""Every command: `umo`, `python -m pipelines`, make; with the help that the commands themselves give."""

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import typer
import yaml
from typer.core import TyperGroup, TyperOption

from docs.reference.markdown import Undocumented, code, listed, sentence, table
from pipelines.__main__ import PARTS, STAGES, TOOLS
from pipelines.core.shards import ROOT
from umo.cli import app

INTRODUCTION = """\
# Commands

All of them exit with 0 when the work is done, 1 when it failed, 2 for bad input or usage. An expected error is one line
that says what is wrong, where, and what to do. They are in `.venv/bin`, so `. .venv/bin/activate` first; `make` finds
them by itself.
"""
PIPELINES = """\
## python -m pipelines

Run it from the repository's root. `dvc repro` calls the stages for you. Called by hand, a stage runs even where DVC
would skip it, but does not redo finished shards.
"""
TARGET = re.compile(r"^(?P<name>[a-z-]+):(?P<needs>[^#\n]*)## (?P<text>.+)$", re.MULTILINE)


def page() -> str:
    """The page.

    Raises:
        Undocumented: a command or an option has no help.
    """
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    umo = [part for name, command in _commands("umo", group) for part in _umo(name, command)]
    return "\n\n".join([INTRODUCTION, *_make(), PIPELINES, _stages(), *_tools(), *umo])


def _make() -> Iterator[str]:
    yield "## make"
    found = [(f"`make {entry['name']}`", entry["text"]) for entry in TARGET.finditer((ROOT / "Makefile").read_text())]
    yield table(("command", "what it does"), found)


def _stages() -> str:
    described = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    rows = []
    for stage in STAGES:
        entry = described[stage]
        parts = listed(PARTS[stage]) if stage in PARTS else ""
        rows.append((code(stage), parts, entry.get("do", entry)["desc"].replace("->", "→")))
    return table(("stage", "`--of`", "what it makes"), rows)


def _tools() -> Iterator[str]:
    yield "Tools that are not stages:"
    yield table(("tool", "what it does"), ((code(name), said) for name, (_, said) in TOOLS.items()))
    for function, _ in TOOLS.values():
        module = import_module(f"pipelines.{function.rsplit('.', 1)[0]}") if function else None
        if module and hasattr(module, "_parser"):
            yield from _options(module._parser())


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A tool that has arguments of its own."""
    yield f"### {parser.prog}\n\n{sentence(parser.description or '')}"
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if not action.help:
            raise Undocumented(f"{parser.prog} {action.dest}: no help; write it in its parser")
        shown = "/".join(action.option_strings) or str(action.metavar or action.dest)
        value = "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or action.dest.upper()}"
        rows.append((code(shown + value), action.help % vars(action)))
    yield table(("", "meaning"), rows)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and those within it."""
    yield name, command
    for own, inner in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {own}", inner)


def _umo(name: str, command: Any) -> Iterator[str]:
    """A command of Typer's."""
    arguments: list[tuple[str, str, str]] = []
    options: list[tuple[str, str, str]] = []
    for parameter in command.params:
        if not parameter.help:
            raise Undocumented(f"{name} {parameter.name}: no help; write it in umo/cli")
        row = (code(_shown(parameter)), parameter.help, _default(parameter))
        (options if isinstance(parameter, TyperOption) else arguments).append(row)
    words = [shown.strip("`") for shown, _, _ in arguments] or ["COMMAND"] * isinstance(command, TyperGroup)
    usage = " ".join([name, *words, "[OPTIONS]"])
    level = "###" if " " in name else "##"
    yield f"{level} {name}\n\n{sentence(command.help or '')}\n\n```text\n{usage}\n```"
    if arguments + options:
        yield table(("", "meaning", "default"), arguments + options)


def _shown(parameter: Any) -> str:
    if not isinstance(parameter, TyperOption):
        return parameter.metavar or parameter.name.upper()
    flag = max(parameter.opts, key=len)
    return flag if parameter.is_flag else f"{flag} {parameter.metavar or parameter.name.upper()}"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    return "" if parameter.default is None or parameter.default is False else code(parameter.default)
