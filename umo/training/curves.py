"""A run's figures as they come, where `dvc plots` and editors look: one table a figure, and the last of all."""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Curves:
    """Begun at the first figure: of several processes one logs, and a resumed run logs all anew.

    DVCLive writes them; where it is not installed (it brings all of DVC) the same files are written without it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.live: Any = None

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Figures after an update; those without a / in their name are the training's."""
        if self.live is None and find_spec("dvclive") is None:
            self.live = Tables(self.folder)
        elif self.live is None:
            from dvclive import Live

            self.live = Live(str(self.folder), save_dvc_exp=False, report=None, dvcyaml=None)
        self.live.step = step
        for key, value in row.items():
            self.live.log_metric(key if "/" in key else f"train/{key}", value)

    def end(self) -> None:
        """Write the summary."""
        if self.live is not None:
            self.live.end()


class Tables:
    """The part of DVCLive's Live that is used here, file for file."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self.step = 0
        self.last: dict[str, Any] = {}

    def log_metric(self, name: str, value: float) -> None:
        """Add a line to a figure's table."""
        path = self.folder / f"plots/metrics/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "" if path.exists() else f"step\t{path.stem}\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{head}{self.step}\t{value}\n")
        group, _, own = name.partition("/")
        self.last.setdefault(group, {})[own] = value

    def end(self) -> None:
        """Write the last of all figures."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "metrics.json").write_text(json.dumps(self.last | {"step": self.step}, indent=4) + "\n")
