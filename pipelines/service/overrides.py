"""Other values for one run: they reach the stages through params.yaml, and afterwards the workspace is as it was.

DVC looks at params.yaml alone, so a run with other values writes them there. A note on disk is written first: after a
kill the next run of the same flow with the same values goes on, and any other puts everything back before it begins.
The result is saved as an experiment of DVC's.
"""

import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.params import PARAMS, load_all
from pipelines.service import graph, repository
from pipelines.service.commands import dvc, follow, reason
from pipelines.service.repository import changes, git
from pipelines.service.writer import STATE, by_hand
from umo.errors import BadInput, WorkFailed

if TYPE_CHECKING:
    from ruamel.yaml import YAML

NOTE = STATE / "overrides.json"
TRIED = STATE / "params.yaml"
LOCK_FILE = "dvc.lock"
EXPERIMENT = "dvc: commit experiment"  # the first words of the commits in which DVC saves
ANY_STAGE = ("machine", "bases")  # sections that no single stage owns


@dataclass(frozen=True)
class Note:
    """
    Attributes:
        values: those that params.yaml holds now.
        flow: the flow that runs with them.
        stages: those that are to be run, whose products are put back.
        kept: files that stages write and git keeps.
        branch: where HEAD was, as in refs/heads/main; empty where it was on none.
        commit: what everything is put back to.
        written: sha256 of params.yaml as it was written for the run.
    """

    values: Mapping[str, Any]
    flow: str
    stages: Sequence[str]
    kept: Sequence[str]
    branch: str
    commit: str
    written: str

    @staticmethod
    def read(root: Path = Path()) -> "Note | None":
        """None where no run with other values is at work or was interrupted."""
        try:
            return Note(**json.loads((root / NOTE).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, root: Path = Path()) -> None:
        """Replace the note whole."""
        (root / NOTE).parent.mkdir(parents=True, exist_ok=True)
        _replace(root / NOTE, json.dumps(asdict(self)))


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is never there in part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def trained_base(root: Path = Path()) -> str:
    """`train.base` of params.yaml as it is committed or, where it is not, as it stands."""
    import yaml

    left = Note.read(root)
    text = git("show", f"{left.commit if left else 'HEAD'}:{PARAMS}", root=root, missing="")
    text = text or (root / PARAMS).read_text()
    return str((yaml.safe_load(text).get("train") or {}).get("base", ""))


def refuse_foreign(values: Mapping[str, Any], stages: Iterable[str], flow: str) -> None:
    """
    Raises:
        BadInput: a value belongs to a stage that the flow does not run.
    """
    sections = {stage.partition("@")[0] for stage in stages} | set(ANY_STAGE)
    for key in values:
        if "." not in key:
            raise BadInput(f"overrides: '{key}' is no section.key of {PARAMS}: write for example curate.min_cosine")
        if key.partition(".")[0] not in sections and key.partition(".")[0] in _sections():
            raise BadInput(f"overrides: '{key}' changes no stage of {flow}: leave it out, or run reproduce")


def _sections() -> tuple[str, ...]:
    from pipelines.__main__ import SECTIONS

    return SECTIONS


def overridden(text: str, values: Mapping[str, Any]) -> str:
    """params.yaml with other values; every line without one of them stays as it is.

    Raises:
        BadInput: a key leads through something that is no section.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    tree = yaml.load(text)
    plain = _dumped(yaml, tree)
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise BadInput(f"overrides: '{key}' is no key of {PARAMS}")
        node[last] = value
    changed, lines = _dumped(yaml, tree), text.splitlines(keepends=True)
    if len(plain) != len(lines):
        return "".join(changed)
    # ruamel writes some lines in another way though nothing in them is changed: those are taken from the text.
    parts = SequenceMatcher(None, plain, changed, autojunk=False).get_opcodes()
    return "".join(line for kind, a, b, c, d in parts for line in (lines[a:b] if kind == "equal" else changed[c:d]))


def _dumped(yaml: "YAML", tree: object) -> list[str]:
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue().splitlines(keepends=True)


def recover(
    log: Callable, root: Path, hold: Iterable[int] = (), values: Mapping[str, Any] | None = None, flow: str = ""
) -> None:
    """Put back what an interrupted run left, unless it is this one's; before anything else of the workspace is read.

    Args:
        hold: open files that DVC holds too, see `writer`.
        values, flow: of the run that begins; none where it has no values of its own.
    """
    left = Note.read(root)
    if left is None:
        return
    _attach(left, root)
    if values and left.values == values and left.flow == flow and _is_sound(root):
        return
    log(f"a run with {_in_words(left.values)} was interrupted: putting {PARAMS} and the products back")
    restore(log, root, hold)


def refuse_pending(root: Path = Path()) -> None:
    """
    Raises:
        BadInput: the workspace holds what an interrupted run with other values made.
    """
    if left := Note.read(root):
        raise BadInput(
            f"a run with {_in_words(left.values)} was interrupted: put back what it changed first "
            "(python -m pipelines.service.overrides)"
        )


def _is_sound(root: Path) -> bool:
    """Whether DVC can read its files, of which one may have been half-written."""
    try:
        graph.look(root)
    except BadInput:
        return False
    return True


def begin(
    values: Mapping[str, Any], flow: str, stages: Sequence[str], kept: Sequence[str], log: Callable, root: Path
) -> None:
    """Write the values into params.yaml; `recover` comes before it, and `restore` after it, whatever happens.

    Args:
        stages: those that will run.
        kept: files that stages write and git keeps.

    Raises:
        BadInput: a value is unknown or out of range, or files that have to be put back afterwards are not committed.
    """
    left = Note.read(root)
    commit = left.commit if left else git("rev-parse", "HEAD", root=root)
    text = overridden(git("show", f"{commit}:{PARAMS}", root=root) + "\n", values)
    _check(text, root)
    written = hashlib.sha256(text.encode()).hexdigest()
    if left is None:
        refuse_unsaved([str(PARAMS), LOCK_FILE, *kept], "with overrides", root)
        branch = git("symbolic-ref", "--quiet", "HEAD", root=root, missing="")
        Note(values, flow, list(stages), list(kept), branch, commit, written).write(root)
    else:
        _keep_edits(left, log, root)
        replace(left, written=written).write(root)
    log(f"{PARAMS} for this run: {_in_words(values)}")
    _replace(root / PARAMS, text)


def refuse_unsaved(files: Iterable[str], when: str, root: Path) -> None:
    """
    Raises:
        BadInput: one of the files is not as it is committed, or is there and not committed.
    """
    known = set(git("ls-files", root=root).splitlines())
    loose = [name for name in files if name in set(changes(root)) or (name not in known and (root / name).exists())]
    if loose:
        others = f" and {len(loose) - 1} others" if loose[1:] else ""
        raise BadInput(
            f"a run {when} needs a clean tree, and {loose[0]}{others} is not committed: commit or restore it"
        )


def _check(text: str, root: Path) -> None:
    tried = root / TRIED
    tried.parent.mkdir(parents=True, exist_ok=True)
    tried.write_text(text)
    try:
        load_all(_sections(), tried)
    except BadInput as error:
        raise BadInput(str(error).replace(str(tried), "overrides")) from error
    finally:
        tried.unlink()


def experiment(name: str, run_id: str) -> str:
    """A run's name as DVC takes it for an experiment, for people may write what they like into a form.

    It ends with the first part of the run's id: names come again, and an earlier result must not be replaced.
    """
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', name).strip('-') or 'run'}-{run_id.partition('-')[0]}"


def save(
    name: str, stages: Sequence[str], kept: Sequence[str], log: Callable, root: Path, hold: Iterable[int] = ()
) -> None:
    """Save what the run made as an experiment; `dvc exp show` lists it, `dvc exp apply` brings it back.

    Raises:
        WorkFailed: DVC could not save it.
    """
    known = set(git("ls-files", root=root).splitlines())
    made = [name for name in [LOCK_FILE, *kept] if name not in known and (root / name).exists()]
    untracked = [option for file in made for option in ("--include-untracked", file)]
    said: list[str] = []
    command = dvc("exp", "save", "--force", "--name", name, *untracked, "--", *stages)
    if follow(command, said.append, root, hold):
        raise WorkFailed(f"the result could not be saved: {reason(said) or 'dvc exp save failed'}")
    log(f"saved as the experiment {name}: dvc exp show; dvc exp apply {name}")


def restore(log: Callable, root: Path, hold: Iterable[int] = ()) -> None:
    """params.yaml, dvc.lock, what git keeps of the stages, and the stages' products, as they were; then the note goes.

    Nothing where there is no note.
    """
    note = Note.read(root)
    if note is None:
        return
    _attach(note, root)
    _keep_edits(note, log, root)
    files = [str(PARAMS), LOCK_FILE, *note.kept]
    known = set(git("ls-tree", "-r", "--name-only", note.commit, root=root).splitlines())
    for name in files:
        if name in known:
            git("checkout", "--quiet", note.commit, "--", name, root=root)
        else:
            (root / name).unlink(missing_ok=True)
    if by_hand := git("diff", "--name-only", note.commit, "HEAD", "--", *files, root=root).splitlines():
        log(f"committed by hand during the run: {', '.join(by_hand)}; here as before the run: git diff HEAD")
    said: list[str] = []
    if follow(dvc("checkout", "--force", "--allow-missing", *note.stages), said.append, root, hold):
        log(f"not all products could be put back ({reason(said)}): dvc pull, or a run makes them")
    (root / NOTE).unlink(missing_ok=True)


def _attach(note: Note, root: Path) -> None:
    """HEAD is where it was again, if DVC was killed while it saved: it saves with HEAD on no branch."""
    if git("symbolic-ref", "--quiet", "HEAD", root=root, missing=""):
        return
    now, subject = git("log", "-1", "--format=%H %s", root=root).split(" ", 1)
    if now != note.commit and not subject.startswith(EXPERIMENT):
        return  # somebody went there by hand
    if note.branch:
        git("symbolic-ref", "HEAD", note.branch, root=root)
    else:
        git("update-ref", "--no-deref", "HEAD", note.commit, root=root)
    git("reset", "--quiet", root=root)


def _keep_edits(note: Note, log: Callable, root: Path) -> None:
    """Where params.yaml was edited by hand since it was written for the run, a copy stays beside it."""
    file = root / PARAMS
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() == note.written:
        return
    if git("hash-object", str(PARAMS), root=root) == git("rev-parse", f"{note.commit}:{PARAMS}", root=root):
        return
    names = (file.with_name(f"{PARAMS}.mine{number or ''}") for number in count())
    mine = next(name for name in names if not name.exists())
    mine.write_bytes(file.read_bytes())
    log(f"{PARAMS} was edited by hand during the run: what it held is in {mine.name}, this run's values too")


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def main() -> int:
    """Put back, from a terminal, what an interrupted run left."""
    try:
        repository.check()
        with by_hand("putting back") as hold:
            recover(print, Path(), [hold])
    except (BadInput, WorkFailed) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
