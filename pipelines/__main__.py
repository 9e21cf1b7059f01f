"""`python -m pipelines STAGE [--of PART]`: what dvc.yaml calls. Needs no Prefect."""

import argparse
import errno
import io
import os
import sys
import time
from importlib import import_module

from pipelines.core.params import SECTIONS, STAGES, load_all
from pipelines.core.products import TRAINED_METHODS
from umo.errors import BadInput, WorkFailed
from umo.texts import one_line

# Idle OpenMP threads sleep instead of spinning: beside another busy process, drawing was seen a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

METHODS = ("target", "pasted", "base", *TRAINED_METHODS, "shuffled")
PARTS = {
    "measure": ("ingested", "synthesised"),
    "train": TRAINED_METHODS,
    "generate": METHODS,
    "evaluate": METHODS,
}

# What is no stage: name -> the function that does it, and what for.
TOOLS = {
    "check": (None, "reads params.yaml and does nothing"),
    "photos": ("identify.photos.write_photos", "writes the training people's photographs for `umo calibrate`"),
    "ablate": ("ablate.stage.main", "makes cells of the ladder: runs/ablate (ablate --help)"),
    "ladder": ("report.ladder_page.write", "writes docs/results/ladder.json and ladder.md from scores and cells"),
    "picture": ("report.before_after.write_picture", "keeps typical drawings as docs/images/before-after.jpg"),
    "versions": ("core.keys.write_versions", "writes versions.yaml: the libraries that each stage computes with"),
    "sources": ("core.contents.write_contents", "notes what lies in the sources, for DVC (datasets/dvc.yaml)"),
    "unlock": (
        "service.leftovers.clear_stale",
        "removes what killed runs left of DVC's: locks, empty records, half of dvc.lock",
    ),
    "browse": ("browse.stage.main", "writes a page of thumbnails to look at and to correct (browse --help)"),
    "forget": ("forget.stage.main", "removes a person from every product (forget --help)"),
    "serve": ("service.serve.serve", "starts Prefect's server, worker and deployments on this machine"),
    "stop": ("service.serve.stop", "ends what serve started"),
    "release": ("release.stage.main", "makes a version of the data set that others can get (release --help)"),
    "smoke": ("smoke.run_smoke", "runs the whole graph on little data, in a copy"),
}
OWN_ARGUMENTS = ("ablate", "browse", "forget", "release")
HELP = "; ".join(f"{name} {what}" for name, (_, what) in TOOLS.items())


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; 0 done, 1 the work failed, 2 bad input. Errors that can be expected are one line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description="Run one stage of the graph in dvc.yaml.")
    parser.add_argument("stage", choices=[*STAGES, *TOOLS], metavar="STAGE", help=f"{', '.join(STAGES)}; {HELP}")
    parser.add_argument("--of", metavar="PART", help="the part of a stage that has several")
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = [given[1:]] if given[:1] and given[0] in OWN_ARGUMENTS else []
    options = parser.parse_args(given[:1] if own else given)
    allowed = PARTS.get(options.stage)
    if (options.of is None) != (allowed is None) or (allowed and options.of not in allowed):
        parser.error(f"{options.stage} takes " + (f"--of, one of {', '.join(allowed)}" if allowed else "no --of"))
    name = f"{options.stage}@{options.of}" if options.of else options.stage
    started = time.perf_counter()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        params = load_all(SECTIONS)
        if options.stage in STAGES:
            stage = import_module(f"pipelines.{options.stage}.stage")
            parts = (options.of,) if options.of else ()
            stage.run(params[options.stage], params["machine"], *parts)
        elif path := TOOLS[options.stage][0]:
            module, _, function = path.rpartition(".")
            print(getattr(import_module(f"pipelines.{module}"), function)(*own))
    except (BadInput, WorkFailed) as error:
        print(f"{name}: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{name}: {one_line(_explain(error))}", file=sys.stderr)
        return WorkFailed.exit_code
    print(f"{name}: done in {time.perf_counter() - started:.1f} s")
    return 0


def _explain(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space and run again; what is finished is kept"
        return f"{where}{error.strerror}; {remedy}"
    return f"{where}{error.strerror or error}"


if __name__ == "__main__":
    sys.exit(main())
