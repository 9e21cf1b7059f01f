"""What a stage costs that is asked in vain: nothing that computes is loaded."""

import json
import shutil
import sys

from tests.pipelines.conftest import Workspace

STAGES = [
    ["ingest"],
    ["measure", "--of", "ingested"],
    ["identify"],
    ["synthesise"],
    ["measure", "--of", "synthesised"],
    ["curate"],
    ["caption"],
    ["validate"],
    ["export"],
    ["cases"],
    ["generate", "--of", "target"],
]
HEAVY = ("diffusers", "dvc", "great_expectations", "onnxruntime", "prefect", "ray", "torch", "transformers")
SCRIPT = f"""
import json, sys
from pipelines.__main__ import main
def do_all(title, do, jobs, *_):
    assert not jobs, (title, list(jobs))
from pipelines.core import shards
shards.do_all = do_all
found = {{}}
for arguments in {STAGES!r}:
    code = main(arguments)
    found[" ".join(arguments)] = [code, *sorted(sys.modules.keys() & set({HEAVY!r}))]
print(json.dumps(found))
"""


def test_a_stage_that_is_asked_in_vain_loads_nothing_that_computes(small, tmp_path):
    shutil.copytree(small.path, tmp_path / "umo", symlinks=True)
    workspace = Workspace(tmp_path / "umo")
    for arguments in (["identify"], ["generate", "--of", "target"]):  # the ledger has grown since the first
        workspace.stage(*arguments)
    found = json.loads(workspace.run(sys.executable, "-c", SCRIPT).stdout.splitlines()[-1])
    assert found == {" ".join(arguments): [0] for arguments in STAGES}
