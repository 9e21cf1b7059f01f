"""What flows do around their stages, without a server: what they put back, and what they refuse."""

import errno
import logging
import re
from types import SimpleNamespace

import pytest

from pipelines import flows
from pipelines.forget import stage as forget
from pipelines.service import forgetting, graph, overrides
from pipelines.service.form import DataOverrides
from pipelines.service.overrides import Note
from tests.pipelines.service.toy import Toy
from umo.errors import BadInput, WorkFailed

HOLD = 0  # any open file


@pytest.fixture(autouse=True)
def _no_server(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's folder is the current one; what would be written to Prefect is not."""
    monkeypatch.setattr(flows, "get_run_logger", lambda: logging.getLogger("flow"))
    monkeypatch.setattr(flows, "_publish", lambda pages: None)


def stages(changes: DataOverrides = flows.AS_IN_PARAMS, commit: bool = False) -> str:
    """As build_dataset."""
    return flows._stages(lambda every: every.up_to("export"), changes, commit, HOLD)


def interrupted(toy: Toy) -> None:
    """A run with other values was killed in the middle."""
    overrides.begin({"curate.min_cosine": 0.2}, "reproduce", ["curate"], graph.look()[0].kept, print, toy.path)
    toy.repro("curate")
    assert toy.dirty() != []


def test_params_are_put_back_where_dvc_fails_in_between(toy, monkeypatch):
    looks = iter([graph.look()])

    def look(root):
        for found in looks:
            return found
        raise WorkFailed("another DVC command is at work here")

    monkeypatch.setattr(graph, "look", look)
    with pytest.raises(WorkFailed, match="another DVC command"):
        stages(DataOverrides(min_cosine=0.2))
    assert toy.dirty() == []
    assert Note.read() is None


def test_a_lock_file_that_a_kill_cut_off_blocks_no_flow(toy):
    interrupted(toy)
    lock = toy.path / "dvc.lock"
    lock.write_text(lock.read_text()[:150])
    assert stages() == "everything is up to date"
    assert toy.dirty() == []


def test_a_full_disk_is_told_in_a_line(monkeypatch):
    def work(hold):
        raise OSError(errno.ENOSPC, "No space left on device", "dvc.lock")

    state = flows._guarded(0, work)
    assert state.is_failed()
    assert state.message == "dvc.lock: No space left on device; mend it and run again"


def test_forget_and_release_begin_from_what_was(toy, monkeypatch):
    found = []
    monkeypatch.setattr(forgetting, "forget", lambda *args: found.append(toy.dirty()) or "done")
    interrupted(toy)
    assert flows._forget("p0123", None, [], HOLD) == "done"
    monkeypatch.setattr(flows, "run_release", lambda *args, **options: found.append(toy.dirty()) or flows.Completed())
    interrupted(toy)
    flows._release("1.0.0", None, None, HOLD)
    assert found == [[], []]


def test_what_was_made_of_stale_data_is_not_committed(toy):
    (toy.path / "datasets/photos.txt").write_text("ann\nbob\n")
    toy.commit("another photograph")
    head = toy.run("git", "rev-parse", "HEAD").stdout
    with pytest.raises(BadInput, match="commit needs the data up to date, and ingest is not: run reproduce"):
        flows._stages(lambda every: every.after("export"), flows.TRAINED_AS_IN_PARAMS, True, HOLD)
    assert toy.run("git", "rev-parse", "HEAD").stdout == head


def test_what_is_typed_as_a_person_is_no_option(monkeypatch):
    found = []
    monkeypatch.setattr(forgetting, "forget", lambda options, *rest: found.append(options) or "done")
    flows._forget("--delete-originals", None, ["--dry-run"], HOLD)
    flows._forget(None, "-1.jpg", [], HOLD)
    person, photo = (forget._parser().parse_args(options) for options in found)
    assert (person.person, person.dry_run, person.delete_originals) == ("--delete-originals", True, False)
    assert str(photo.photo) == "-1.jpg"


@pytest.mark.parametrize(
    ("changes", "commit", "said"),
    [
        ({"min_cosine": 3}, False, "'curate.min_cosine': input should be less than or equal to 1, found 3"),
        ({"set": {"cases.per_n": 3}}, False, "'cases.per_n' changes no stage of build_dataset"),
        ({"min_cosine": 0.3}, True, "commit goes with no overrides"),
    ],
)
def test_unfit_parameters_are_refused_before_anything_is_done(toy, monkeypatch, changes, commit, said):
    monkeypatch.setattr(flows, "flow_run", SimpleNamespace(name="a-run", id="0" * 8, flow_name="build_dataset"))
    before = toy.products()
    with pytest.raises(BadInput, match=re.escape(said)):
        stages(DataOverrides(**changes), commit)
    assert toy.products() == before
    assert toy.dirty() == []
