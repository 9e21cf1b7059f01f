"""What flows do around their stages, without a server: what they leave, and what they refuse."""

import errno
import logging
import re
from types import SimpleNamespace

import pytest

from pipelines import flows
from pipelines.forget import stage as forget
from pipelines.service import graph, overrides, privacy
from pipelines.service.form import DataOverrides
from pipelines.service.overrides import SPACE
from tests.pipelines.service.toy import Toy
from umo.errors import BadInput, WorkFailed


@pytest.fixture(autouse=True)
def _no_server(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's folder is the current one; what would be written to Prefect is not."""
    monkeypatch.setattr(flows, "get_run_logger", lambda: logging.getLogger("flow"))
    monkeypatch.setattr(flows, "_publish", lambda pages: None)


def stages(changes: DataOverrides = flows.AS_IN_PARAMS, commit: bool = False) -> str:
    """As build_dataset."""
    return flows._stages(lambda every: every.up_to("export"), changes, commit)


def test_the_workspace_of_a_run_is_dropped_where_dvc_fails_in_between(toy, monkeypatch):
    def changed(space, *stages):
        assert space.exists()
        raise WorkFailed("another DVC command is at work here")

    monkeypatch.setattr(graph, "changed", changed)
    with pytest.raises(WorkFailed, match="another DVC command"):
        stages(DataOverrides(min_cosine=0.2))
    assert toy.dirty() == []
    assert not SPACE.exists()


def test_the_next_flow_drops_what_a_killed_one_left(toy, monkeypatch):
    left = overrides.workspace({"curate.min_cosine": 0.2}, graph.look(), print)
    left.__enter__()  # never left: it was killed
    monkeypatch.setattr(flows.api, "report_killed", lambda *args: None)
    assert flows._guarded(0, lambda: str(SPACE.exists())).message == "False"
    left.gen.close()


def test_a_full_disk_is_told_in_a_line(monkeypatch):
    def work():
        raise OSError(errno.ENOSPC, "No space left on device", "dvc.lock")

    state = flows._guarded(0, work)
    assert state.is_failed()
    assert state.message == "dvc.lock: No space left on device; mend it and run again"


@pytest.mark.parametrize("text", ["a\0", "a\ud83d", "a\x1b[31m"])
def test_what_no_command_takes_is_refused(text):
    """JSON of a form can say it."""
    for work in (
        lambda: flows._forget(text, None, []),
        lambda: flows._forget(None, f"{text}.png", []),
        lambda: flows._release("1.0.0", text, None),
        lambda: overrides.refuse_foreign({"curate.min_cosine": text}, ["curate"], "build_dataset"),
        lambda: overrides.refuse_foreign({f"curate.{text}": 1}, ["curate"], "build_dataset"),
    ):
        with pytest.raises(BadInput, match=r"^[^\n]*(is not Unicode|control character)[^\n]*$") as refused:
            work()
        assert str(refused.value).isprintable()


def test_what_was_made_of_stale_data_is_not_committed(toy):
    (toy.path / "datasets/photos.txt").write_text("ann\nbob\n")
    toy.commit("another photograph")
    head = toy.run("git", "rev-parse", "HEAD").stdout
    with pytest.raises(BadInput, match="commit needs the data up to date, and ingest is not: run reproduce"):
        flows._stages(lambda every: every.after("export"), flows.TRAINED_AS_IN_PARAMS, True)
    assert toy.run("git", "rev-parse", "HEAD").stdout == head


def test_what_is_typed_as_a_person_is_no_option(monkeypatch):
    found = []
    monkeypatch.setattr(privacy, "forget", lambda options, *rest: found.append(options) or "done")
    flows._forget("--delete-originals", None, ["--dry-run"])
    flows._forget("p1 p2", None, [])
    flows._forget(None, "-1.jpg", [])
    person, several, photo = (forget._parser().parse_args(options) for options in found)
    assert (person.people, person.dry_run, person.delete_originals) == (["--delete-originals"], True, False)
    assert several.people == ["p1", "p2"]
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
