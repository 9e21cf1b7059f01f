"""The flows that Prefect schedules and shows. DVC decides whether a stage runs, and the stage's command does the work.

A flow asks DVC once what is not up to date; each such stage is a task, `dvc repro --single-item STAGE`, in the graph's
order. How it is made fit for a server is in pipelines/service, which knows no Prefect.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import FailedRun
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed, State

from pipelines.service import api, artifacts, graph, overrides, privacy, repository, writer
from pipelines.service.form import DataOverrides, TrainingOverrides
from pipelines.service.links import FILES_URL, Links
from umo.errors import BadInput, WorkFailed
from umo.texts import fault

ROOT = Path()
ON_GPU = ("train", "generate")
INTERRUPTED = "Interrupted"  # the name of a failed state after which the same again may go well
EXPORT = "export"  # the last stage of the data
AS_IN_PARAMS, TRAINED_AS_IN_PARAMS = DataOverrides(), TrainingOverrides()


def _may_help(task: object, run: object, state: State) -> bool:
    return state.name == INTERRUPTED


# How long a retry waits is Prefect's setting PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS, which `make serve` sets.
@task(task_run_name="{stage}", cache_policy=NO_CACHE, retries=2, retry_condition_fn=_may_help)
def run_stage(stage: str, space: Path) -> State:
    """A stage of dvc.yaml, in the workspace of the run."""
    try:
        graph.reproduce(stage, get_run_logger().info, space)
    except (BadInput, WorkFailed) as error:
        return Failed(message=str(error), name=INTERRUPTED if isinstance(error, graph.Interrupted) else "Failed")
    return Completed(message="done")


@flow(name="build_dataset")
def build_dataset(overrides: DataOverrides = AS_IN_PARAMS, commit: bool = False, wait_minutes: float = 60) -> State:
    """The data stages, ingest to export: what photographs, params.yaml and code ask for, and is not there yet.

    Args:
        overrides: Other values for this run alone; the result is kept as an experiment (dvc exp show).
        commit: Commit dvc.lock and what else the stages wrote and git keeps. Not with overrides.
        wait_minutes: How long to wait while another run is at work in this workspace.
    """
    return _guarded(wait_minutes, partial(_stages, lambda all: all.up_to(EXPORT), overrides, commit))


@flow(name="train_and_evaluate")
def train_and_evaluate(
    overrides: TrainingOverrides = TRAINED_AS_IN_PARAMS, commit: bool = False, wait_minutes: float = 60
) -> State:
    """The stages after the data set, cases to report, on the data set as it is.

    Args:
        overrides: Other values for this run alone; the result is kept as an experiment (dvc exp show).
        commit: Commit dvc.lock and what else the stages wrote and git keeps. Not with overrides.
        wait_minutes: How long to wait while another run is at work in this workspace.
    """
    return _guarded(wait_minutes, partial(_stages, lambda all: all.after(EXPORT), overrides, commit))


@flow(name="reproduce")
def reproduce(
    overrides: TrainingOverrides = TRAINED_AS_IN_PARAMS, commit: bool = False, wait_minutes: float = 60
) -> State:
    """Every stage that is not up to date, ingest to report, as `dvc repro` would.

    Args:
        overrides: Other values for this run alone; the result is kept as an experiment (dvc exp show).
        commit: Commit dvc.lock and what else the stages wrote and git keeps. Not with overrides.
        wait_minutes: How long to wait while another run is at work in this workspace.
    """
    return _guarded(wait_minutes, partial(_stages, lambda all: list(all.before), overrides, commit))


@flow(name="release_dataset")
def release_dataset(
    version: str, destination: str | None = None, remote: str | None = None, wait_minutes: float = 60
) -> State:
    """Give the exported data set out as a version: tag it, push it, and copy it with its card.

    Args:
        version: As in 1.2.0.
        destination: A folder, s3://bucket/prefix or hf://datasets/owner/name (private) for a copy that needs no DVC.
        remote: The DVC remote to push to; empty: the default one.
        wait_minutes: How long to wait while another run is at work in this workspace.
    """
    return _guarded(wait_minutes, partial(_release, version, destination, remote))


@flow(name="forget_person")
def forget_person(
    person: str | None = None,
    photo: str | None = None,
    dry_run: bool = True,
    drop_models: bool = False,
    delete_originals: bool = False,
    wait_minutes: float = 60,
) -> State:
    """Remove a person from every product and cache, and prove it; first look what would go, with dry_run.

    Args:
        person: A person_id of datasets/people, or several with spaces between them.
        photo: In its place, the path of a photograph that shows the person alone. Prefect keeps what is written here.
        dry_run: Only list what would go.
        drop_models: Also remove the LoRAs that saw them.
        delete_originals: Also delete their photographs below datasets/photos.
        wait_minutes: How long to wait while another run is at work in this workspace.
    """
    switches = {"--dry-run": dry_run, "--drop-models": drop_models, "--delete-originals": delete_originals}
    return _guarded(wait_minutes, partial(_forget, person, photo, [key for key, on in switches.items() if on]))


def _in_a_line(record: logging.LogRecord) -> bool:
    """The last of a failed run's log is its state's message, not the traceback that Prefect makes of that state."""
    if record.exc_info and isinstance(record.exc_info[1], FailedRun):
        record.msg, record.args, record.exc_info = str(record.exc_info[1]), (), None
    return True


def _guarded(wait_minutes: float, work: Callable[[], str]) -> State:
    """Work as the one writer of the workspace; the state's message is what the work says, or its one line of error."""
    logging.getLogger("prefect.flow_runs").addFilter(_in_a_line)
    log = get_run_logger()
    run = writer.Run(str(flow_run.flow_name), str(flow_run.id))
    try:
        repository.check(ROOT)
        with writer.noted(run, ROOT), writer.writing(run, wait_minutes, log.info, ROOT):
            try:
                api.report_killed(PREFECT_API_URL.value(), log.info, ROOT)
            except OSError as error:
                log.warning(f"runs that were killed could not be reported: {error}")
            overrides.drop(ROOT)
            return Completed(message=work())
    except (BadInput, WorkFailed) as error:
        return Failed(message=str(error))
    except OSError as error:  # a full disk, for example
        return Failed(message=f"{error.filename or 'the workspace'}: {error.strerror or error}; mend it and run again")


def _stages(choose: Callable[[graph.Graph], list[str]], changes: DataOverrides, commit: bool) -> str:
    """Run the chosen stages, with overrides in a workspace of their own; commit or keep what comes of it; show it."""
    log, flow_name = get_run_logger(), str(flow_run.flow_name)
    name = overrides.experiment(str(flow_run.name), str(flow_run.id))
    values = changes.values(overrides.trained_base(ROOT))
    if commit and values:
        raise BadInput("commit goes with no overrides: their result is kept as an experiment")
    every = graph.look(ROOT)
    stages, revision = choose(every), repository.revision(ROOT)
    overrides.refuse_foreign(values, stages, flow_name)
    with overrides.workspace(values, every, log.info, ROOT) if values else nullcontext(ROOT) as space:
        stale = graph.changed(space)
        others = sorted(stale - set(stages) & set().union(*map(every.up_to, stages)))
        if commit:
            repository.refuse_other_changes(every.kept, ROOT)
        if commit and others:  # the commit would describe products of what is no more
            raise BadInput(f"commit needs the data up to date, and {', '.join(others)} is not: run reproduce")
        if others:
            log.warning(f"not up to date, and used as they are: {', '.join(others)}")
        ran = _run(every, stages, stale, space)
        if values:
            overrides.save(name, stages, every.kept, log.info, space)
        if commit:
            made = ", ".join(ran) or "what runs before made"
            repository.commit(f"{flow_name}: {made}", every.kept, log.info, ROOT)
        _show(stages, f"{revision}, experiment {name}" if values else repository.revision(ROOT), space)
    return f"{len(ran)} stages ran: {', '.join(ran)}" if ran else "everything is up to date"


def _run(every: graph.Graph, stages: Sequence[str], stale: set[str], space: Path) -> list[str]:
    """A task for each stage that is not up to date, or is no more since a stage before it ran; returns those. After one
    that failed none is begun, and WorkFailed is raised.
    """
    done: dict[str, State] = {}
    for stage in stages:
        followed = every.before[stage] & done.keys()
        if stage not in stale and not (followed and graph.changed(space, stage, look=False)):
            continue
        body = run_stage.with_options(tags={"gpu"}) if stage.partition("@")[0] in ON_GPU else run_stage
        done[stage] = body(stage, space, wait_for=[done[name] for name in sorted(followed)], return_state=True)
        if not done[stage].is_completed():
            if stage == "validate":
                _publish(artifacts.of_failed_validation(space, repository.revision(ROOT), _links(space)))
            raise WorkFailed(str(done[stage].message))
    return list(done)


def _show(stages: Sequence[str], revision: str, space: Path = ROOT) -> None:
    """Artifacts of what the stages made, now or earlier."""
    if "curate" in stages:
        _publish(artifacts.of_data(space, revision, _links(space)))
    if "compare" in stages:
        _publish(artifacts.of_training(space, revision, _links(space)))


def _links(space: Path) -> Links:
    return Links.read(os.environ.get(FILES_URL, ""), space)


def _publish(pages: Mapping[str, str]) -> None:
    for key, markdown in pages.items():
        body, _, version = markdown.rpartition("\n\n")  # a page's last line; Prefect's lists show it
        create_markdown_artifact(body, key=key, description=version)


@task(task_run_name="release", cache_policy=NO_CACHE, retries=2, retry_condition_fn=_may_help)
def run_release(version: str, destination: str | None, remote: str | None) -> State:
    """Tag, push and copy; again where a remote did not answer."""
    from pipelines.release.stage import release

    try:
        released = release(version, destination, remote, log=get_run_logger().info)
    except (BadInput, WorkFailed) as error:
        return Failed(message=str(error), name=INTERRUPTED if isinstance(error, WorkFailed) else "Failed")
    return Completed(message=f"{released.tag} at {released.revision}, {released.files} files")


def _refuse_unfit(*texts: str | None) -> None:
    """What is written into a form reaches commands and files: BadInput where they cannot take it."""
    for text in texts:
        if bad := fault(text or "", name=True):
            raise BadInput(f"{bad}: write it anew")


def _release(version: str, destination: str | None, remote: str | None) -> str:
    _refuse_unfit(version, destination, remote)
    state = run_release(version, destination, remote, return_state=True)
    if not state.is_completed():
        raise WorkFailed(str(state.message))
    _show(["curate"], repository.revision(ROOT))
    return str(state.message)


def _forget(person: str | None, photo: str | None, switches: Sequence[str]) -> str:
    _refuse_unfit(person, photo)
    if bool(person) == bool(photo):
        raise BadInput("forget_person: name either a person or a photo")
    who = [f"{privacy.PHOTO}{photo}"] if photo else ["--", *str(person).split()]
    return privacy.forget([*switches, *who], get_run_logger().info, ROOT)
