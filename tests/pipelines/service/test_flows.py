"""Flows on a running server: what is run, what the UI shows of it, bad input, two at once, kills and restarts."""

import re
from collections.abc import Callable
from contextlib import suppress
from urllib.request import urlopen

import psutil
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines import flows
from pipelines.service import api
from pipelines.service.links import FILES_URL
from pipelines.service.overrides import SPACE
from pipelines.service.serve import GPU
from tests.pipelines.service.toy import DATA, Served, kill_group, until

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _as_it_was(served: Served):
    """The workspace is committed, and every change that a test made to it is gone after it."""
    toy = served.workspace
    yield
    served.gate(shut=False)
    toy.run("git", "checkout", "--quiet", "--force", "HEAD", "--", ".")
    assert toy.dirty() == []


@pytest.fixture
def here(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str, str]]:
    """`Served.run` in this process, without the worker's seconds to start another."""

    def run(flow: str, **parameters: object) -> tuple[str, str, str]:
        monkeypatch.chdir(served.workspace.path)
        monkeypatch.setenv(FILES_URL, f"http://127.0.0.1:{served.port + 1}")
        with temporary_settings({PREFECT_API_URL: served.url}):
            state = getattr(flows, flow)(**parameters, return_state=True)
        return str(state.state_details.flow_run_id), state.type.value, state.message

    return run


def addresses(markdown: str) -> list[str]:
    return re.findall(r"\]\((http[^)]+)\)", markdown)


def test_what_is_up_to_date_is_shown_and_not_run(served, here):
    run, state, message = here("reproduce")
    assert (state, message) == ("COMPLETED", "everything is up to date")
    assert served.tasks(run) == {}
    pages = served.artifacts(run)
    assert pages.keys() == {"funnel", "validation", "data-set-card", "contact-sheet", "metrics", "curves"}
    revision = served.workspace.run("git", "rev-parse", "--short=12", "HEAD").stdout.strip()
    assert all(f"git `{revision}`" in page for page in pages.values())
    assert "0.50 [0.25, 0.75]" in pages["metrics"]
    linked = [address for page in pages.values() for address in addresses(page)]
    assert len(linked) == 5
    assert all(urlopen(address).status == 200 for address in linked)


def test_a_stale_stage_and_what_follows_are_tasks(served, here):
    toy = served.workspace
    photos = toy.path / "datasets/photos.txt"
    photos.write_text("ann\nbob\n")
    toy.commit("another photograph")
    run, state, message = here("build_dataset", commit=True)
    # What ingest makes is other than before; curate's funnel comes out the same, so that nothing after it is run.
    assert (state, message) == ("COMPLETED", "2 stages ran: ingest, curate")
    assert served.ran(run, {"ingest": "COMPLETED", "curate": "COMPLETED"})
    assert served.says(run, "Running stage 'ingest':")
    assert served.says(run, "ingest says hello")
    changed = toy.run("git", "show", "--name-only", "--format=%s").stdout.split("\n")
    assert changed[0] == "build_dataset: ingest, curate"
    assert set(changed[2:-1]) == {"dvc.lock", "datasets/splits.csv"}
    assert toy.dirty() == []


def test_overrides_reach_the_stages_and_leave_no_trace(served, here):
    toy = served.workspace
    before = toy.products()
    run, state, message = here("build_dataset", overrides={"min_cosine": 0.25, "set": {"validate.min_sets": 3}})
    assert (state, message) == ("COMPLETED", "3 stages ran: curate, validate, export")
    assert "| **kept as sets** | **25** |" in served.artifacts(run)["funnel"]
    assert toy.dirty() == []
    assert toy.products() == before
    assert toy.repro() == []
    name = f"{api.call(served.url, 'GET', f'flow_runs/{run}')['name']}-{run.partition('-')[0]}"
    head = toy.run("git", "rev-parse", "--short=12", "HEAD").stdout.strip()
    assert f"git `{head}, experiment {name}`" in served.artifacts(run)["funnel"]
    kept = toy.run("git", "for-each-ref", "--format=%(objectname)", f"refs/exps/**/{name}").stdout.split()
    assert "min_cosine: 0.25" in toy.run("git", "show", f"{kept[0]}:params.yaml").stdout
    assert toy.run("git", "show", f"{kept[0]}:datasets/splits.csv").stdout.endswith("25\n")
    [card] = addresses(served.artifacts(run)["validation"])
    assert urlopen(card).status == 200  # of the experiment, though the workspace holds another


def test_a_failed_validation_shows_the_expectation_and_stops_the_rest(served, here):
    run, state, message = here("build_dataset", overrides={"set": {"validate.min_sets": 1000}})
    assert (state, message) == ("FAILED", "validate: sets: fewer than validate.min_sets")
    assert served.ran(run, {"validate": "FAILED"})
    page = served.artifacts(run)["validation"]
    assert "**sets: fewer than validate.min_sets**" in page
    [docs] = addresses(page)
    assert "fewer than" in urlopen(docs).read().decode()
    assert served.workspace.dirty() == []


def test_unfit_parameters_fail_in_one_line_before_anything_is_done(served):
    """What else is unfit is asked for without a server (test_flows_in_short.py)."""
    run, state, message = served.run("build_dataset", overrides={"set": {"curate.min_cosin": 0.5}})
    assert state == "FAILED"
    assert "did you mean 'min_cosine'" in message
    assert "\n" not in message
    assert served.tasks(run) == {}
    until(lambda: message in served.logs(run), 90, lambda: f"no line '{message}' in {served.logs(run)}")
    assert served.logs(run)[-1] == message
    assert not any("Traceback" in line for line in served.logs(run)), served.logs(run)
    assert served.workspace.dirty() == []


def test_a_wrong_type_is_refused_by_the_form(served):
    with pytest.raises(OSError, match="409"):
        served.start("build_dataset", overrides={"min_cosine": "much"})


def test_a_dirty_tree_is_refused_where_it_would_be_committed(served, here):
    params = served.workspace.path / "params.yaml"
    params.write_text(params.read_text() + "# by hand\n")
    _, state, message = here("build_dataset", commit=True)
    assert state == "FAILED"
    assert "needs a clean tree, and params.yaml is not committed" in message
    assert params.read_text().endswith("# by hand\n")


def test_a_workspace_without_git_is_refused_in_a_line(served, here):
    git = served.workspace.path / ".git"
    git.rename(git.with_name("git-away"))
    try:
        _, state, message = here("build_dataset")
    finally:
        git.with_name("git-away").rename(git)
    assert state == "FAILED"
    assert "is not the top of a git repository" in message


def test_bad_input_of_the_other_flows_is_a_line_too(served, here):
    assert "name either a person or a photo" in here("forget_person")[2]
    assert "version 'nonsense' is none" in here("release_dataset", version="nonsense")[2]


LONG = iter(range(10, 100))  # steps; never the same twice, for DVC knows what it has run before


def slow_training(served: Served, n: int | None = None) -> str:
    """A run that is in the middle of train, and stays there until the gate is opened."""
    served.gate(shut=True)
    steps = served.workspace.path / ".work/train/toy.partial/steps"
    steps.unlink(missing_ok=True)  # of a test before this one
    run = served.start("train_and_evaluate", overrides={"steps": n or next(LONG)})
    until(lambda: steps.exists() and len(steps.read_text()) > 3, 300, lambda: f"{served.state(run)} {served.logs(run)}")
    return run


def test_of_two_flows_one_has_the_gpu_and_the_other_waits_or_is_refused(served, here):
    first = slow_training(served)
    waiting = served.start("build_dataset")
    assert served.says(waiting, "waiting for at most 60 minutes")
    wanted = {"flow_runs": {"id": {"any_": [first]}}}
    tags = {task["name"]: task["tags"] for task in api.call(served.url, "POST", "task_runs/filter", wanted)}
    assert tags == {"train@mimr": [GPU]}
    assert api.call(served.url, "GET", f"v2/concurrency_limits/tag:{GPU}")["active_slots"] == 1
    _, state, message = here("build_dataset", wait_minutes=0)
    assert state == "FAILED"
    assert "the flow train_and_evaluate" in message
    assert "is at work in this workspace" in message
    assert "\n" not in message
    served.gate(shut=False)
    assert served.wait(first)[0] == "COMPLETED"
    assert served.wait(waiting) == ("COMPLETED", "everything is up to date")


def test_a_killed_worker_is_told_and_the_next_run_goes_on(served, here):
    n = next(LONG)
    run = slow_training(served, n)
    kill_group(served.processes()["worker"])
    steps = served.workspace.path / ".work/train/toy.partial/steps"
    left = len(steps.read_text())
    assert 2 < left < n
    assert served.state(run)[0] == "RUNNING"  # nobody has noticed yet
    assert (served.workspace.path / SPACE).exists()
    assert served.workspace.dirty() == []
    served.serve()
    assert served.state(run)[0] == "CRASHED"
    assert set(served.tasks(run).values()) <= {"COMPLETED", "CRASHED"}
    assert here("build_dataset")[1:] == ("COMPLETED", "everything is up to date")
    assert not (served.workspace.path / SPACE).exists()
    served.gate(shut=False)
    again, state, message = served.run("train_and_evaluate", overrides={"steps": n})
    assert (state, message) == ("COMPLETED", "1 stages ran: train@mimr")  # its product is as before: compare need not
    assert served.says(again, "train begins at")
    begun = next(int(line.split()[-1]) for line in served.logs(again) if line.startswith("train begins at"))
    assert begun >= left
    assert served.workspace.dirty() == []


def test_a_killed_stage_is_tried_again_from_where_it_was(served):
    """As for want of memory; a failed validation is not tried again (above)."""
    run = slow_training(served)
    [stage] = trainings(served)
    stage.kill()
    served.gate(shut=False)
    assert served.wait(run)[0] == "COMPLETED"
    assert served.says(run, "stages ran: train@mimr")
    begun = [int(line.split()[-1]) for line in served.logs(run) if line.startswith("train begins at")]
    assert len(begun) == 2
    assert begun[1] > begun[0] == 0


def trainings(served: Served) -> list[psutil.Process]:
    """Processes of the toy's training in its workspace."""
    wanted = (["stage.py", "train"], str(served.workspace.path / SPACE))
    found = psutil.process_iter(["cmdline", "cwd"])
    return [process for process in found if ((process.info["cmdline"] or [])[1:], process.info["cwd"]) == wanted]


def test_a_cancelled_run_ends_its_stage_and_leaves_no_trace(served):
    run = slow_training(served)
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    api.call(served.url, "POST", f"flow_runs/{run}/set_state", body)
    until(lambda: served.state(run)[0] == "CANCELLED", 180, lambda: str(served.state(run)))
    until(lambda: trainings(served) == [], 60)
    assert served.run("build_dataset")[1:] == ("COMPLETED", "everything is up to date")
    assert served.workspace.dirty() == []


def test_half_of_dvc_lock_is_cleared_away_first(served, here):
    """A DVC that is killed while it writes the list leaves what no DVC command reads (service/leftovers.py)."""
    lock = served.workspace.path / "dvc.lock"
    before = yaml.safe_load(lock.read_text())["stages"]
    lock.write_text("")
    assert served.workspace.run("dvc", "status", check=False).returncode
    assert here("reproduce")[1] == "COMPLETED"
    after = yaml.safe_load(lock.read_text())["stages"]
    others = {name for name in before if after.get(name) != before[name]}
    assert others == {"curate"}, "whose ledger grows with every run"


@pytest.mark.long
def test_an_orphaned_stage_is_waited_for(served):
    """Only the flow is killed; DVC and the stage go on, and the next run comes after them."""
    n = next(LONG)
    run = slow_training(served, n)
    worker = psutil.Process(served.processes()["worker"])
    for flow in worker.children():
        dvc = [child for child in flow.children(recursive=True) if "dvc" in child.cmdline()]
        for process in [flow, *flow.children(recursive=True)]:
            if process not in dvc and not any(process in child.children(recursive=True) for child in dvc):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    again = served.start("train_and_evaluate", overrides={"steps": n})
    assert served.says(again, "was killed, and the stage that it began is still at work")
    served.gate(shut=False)
    assert served.wait(again)[0] == "COMPLETED"
    assert served.state(run)[0] == "CRASHED"
    assert served.ran(run, {"train@mimr": "CRASHED"})  # or it would keep the GPU from the next


@pytest.mark.long
def test_a_schedule_stands_when_the_server_is_restarted(served):
    def schedules() -> dict[str, tuple]:
        names = ("build_dataset", "reproduce")
        found = {name: api.call(served.url, "GET", f"deployments/name/{name}/{name}")["schedules"] for name in names}
        return {name: [(of["id"], of["schedule"]["cron"], of["parameters"]) for of in found[name]] for name in names}

    before = schedules()
    assert [cron for _, cron, _ in before["build_dataset"]] == ["0 2 * * *"]
    assert [cron for _, cron, _ in before["reproduce"]] == ["0 4 * * 0"]
    assert before["build_dataset"][0][2] == {"commit": True}
    kill_group(served.processes()["server"])
    assert "the UI is at" in served.serve()
    assert schedules() == before
    assert served.run("build_dataset")[1] == "COMPLETED"  # the worker found the server again


def test_serve_runs_once_and_knows_the_port(served):
    limit = api.call(served.url, "GET", f"concurrency_limits/tag/{GPU}")
    assert limit["concurrency_limit"] == 1
    before = served.processes()
    assert before.keys() == {"server", "files", "worker"}
    assert "runs already" in served.serve()
    assert served.processes() == before
    assert (
        f"http://127.0.0.1:{served.port}/api" in urlopen(f"http://127.0.0.1:{served.port}/ui-settings").read().decode()
    )


def test_build_dataset_runs_the_stages_up_to_export_and_no_other(served, here):
    (served.workspace.path / "stage.py").write_text((served.workspace.path / "stage.py").read_text() + "# edited\n")
    run, state, _ = here("build_dataset")
    assert state == "COMPLETED"
    assert list(served.tasks(run)) == DATA
    served.workspace.run("git", "checkout", "--quiet", "HEAD", "--", ".")
    served.workspace.run("dvc", "checkout", "--force")
