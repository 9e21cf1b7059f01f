"""What a bench says: one number against a named alternative, whether it meets its bar, and the machine it ran on."""

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umo.files import write_text

RESULTS = Path("bench/results")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Result:
    """A ratio measured in one run.

    Attributes:
        value: None where what was to be compared did not come about; that does not hold.
        unit: what is divided by what.
        against: the alternative.
        bar: the value that is promised.
        lower_is_better: whether the value must be at most the bar, or at least.
        details: further keys of the file.
    """

    name: str
    value: float | None
    unit: str
    against: str
    bar: float
    lower_is_better: bool
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.bar if self.lower_is_better else self.value >= self.bar

    def line(self) -> str:
        """One line for a reader."""
        value = "none" if self.value is None else f"{self.value:.3f}"
        sign = "<=" if self.lower_is_better else ">="
        return f"{self.name}: {value} {self.unit} (bar {sign} {self.bar:.3f}: {'holds' if self.holds else 'missed'})"

    def write(self, folder: Path, command: str) -> Path:
        """Write `folder/NAME.json`, whole or not at all.

        Args:
            command: that measures this again.
        """
        content = {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "against": self.against,
            "bar": self.bar,
            "better": "lower" if self.lower_is_better else "higher",
            "holds": self.holds,
            "command": command,
            "machine": machine(),
            **self.details,
        }
        return write_json(folder / f"{self.name}.json", content)


def write_json(path: Path, content: object) -> Path:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def machine() -> str:
    """The machine in plain words: processor, threads, GPU if there is one, torch."""
    import torch  # `bench.__main__` sets a variable that torch reads when it is imported

    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    parts = [models[0] if models else platform.machine(), f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}"])
