"""`python -m bench [NAME ...]`: measure and write bench/results/NAME.json; exit codes as everywhere (0, 1, 2)."""

import argparse
import os
import shlex
import sys
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from bench.result import RESULTS
from umo.errors import BadInput, WorkFailed

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads sleep, for onnxruntime needs the cores

QUICK = {
    "rerefl-step-overhead": "bench.rerefl_step",
    "reward-batched": "bench.reward_batched",
    "draw-batched": "bench.draw_batched",
    "measure-floor": "bench.measure_floor",
    "measure-peer": "bench.measure_peer",
    "export": "bench.export",
    "evaluate-floor": "bench.evaluate_floor",
    "evaluate-peer": "bench.evaluate_peer",
    "benchmark-score": "bench.benchmark_score",
    "serve-load": "bench.serve_load",
    "judge-attack": "bench.judge_attack",
    "ledger": "bench.ledger",
}
LONG = {
    "judge-recall": "bench.judge_recall",
    "rerefl-evaluations": "bench.rerefl_evaluations",
    "incremental": "bench.incremental",
    "growth": "bench.growth",
    "composite-growth": "bench.composite_growth",
    "curate-million": "bench.curate_million",
    "curate-growth": "bench.curate_growth",
    "rethreshold-million": "bench.rethreshold_million",
}
BENCHES = QUICK | LONG
KNOBS = ("updates", "every", "faces", "photos", "quick")


def main(arguments: list[str] | None = None) -> int:
    """Run benches one after the other; 0 also where a bar is missed, for a result is a result."""
    parser = _parser()
    options = parser.parse_args(arguments)
    names = options.names or list(BENCHES if options.long else QUICK)
    if unknown := sorted(set(names) - set(BENCHES)):
        parser.error(f"no bench {unknown[0]!r}: choose of {', '.join(BENCHES)}")
    given = {key: value for key in KNOBS if (value := getattr(options, key)) is not None}
    try:
        setup = cache(_setup)
        for name in names:
            run = import_module(BENCHES[name]).run
            takes = signature(run).parameters
            knobs = {key: value for key, value in given.items() if key in takes}
            result = run(setup(), **knobs) if "setup" in takes else run(**knobs)
            result.write(options.out, _command(name, knobs))
            print(result.line(), flush=True)
    except (BadInput, WorkFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _setup() -> Any:
    from bench.setup import from_params  # torch, and the base: only for the benches of training

    return from_params()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    quick, long = ", ".join(QUICK), ", ".join(LONG)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{quick}; long: {long}")
    parser.add_argument("--long", action="store_true", help="without names: the long ones too")
    parser.add_argument("--updates", type=_positive, help="of a long bench: updates of the faithful form")
    parser.add_argument("--every", type=_positive, help="of a long bench: updates between measurements")
    parser.add_argument("--faces", type=_positive, help="of a long bench of the data engine: faces of its corpus")
    parser.add_argument("--photos", type=_positive, help="of measure-floor, measure-peer, incremental: how many")
    parser.add_argument("--quick", action="store_true", default=None, help="of rerefl-evaluations: one seed")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of results ({RESULTS})")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _command(name: str, knobs: dict[str, Any]) -> str:
    options = [
        part for key, value in knobs.items() for part in ((f"--{key}",) if value is True else (f"--{key}", str(value)))
    ]
    return shlex.join(["python", "-m", "bench", name, *options])


if __name__ == "__main__":
    sys.exit(main())
