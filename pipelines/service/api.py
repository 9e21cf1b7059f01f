"""Prefect's server, as far as it is asked without Prefect: is it there, and what became of runs that were killed."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pipelines.service import writer

ATTEMPTS, PAUSE = 10, 1.0  # seconds; SQLite is locked for a moment when several write
UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")


def call(url: str, method: str, path: str, body: Any = None, timeout: float = 10) -> Any:
    """A request to the REST API, again while its database is busy; None where it answers that there is no such thing.
    OSError where nobody answers, or another error comes.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url.rstrip('/')}/{path.lstrip('/')}", data, headers, method=method)
    for left in reversed(range(ATTEMPTS)):
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or not left:
                raise
            time.sleep(PAUSE)
    raise AssertionError("the last attempt returns or raises")


def report_killed(url: str | None, log: Callable[[str], None], root: Path = Path()) -> None:
    """Set the runs that were killed in this workspace, and their tasks, to Crashed, which they could not do themselves.

    Where there is no server of its own (no address), or it does not answer (OSError), they stay noted.
    """
    if not url:
        return
    for run in writer.killed(root):
        state = {"type": "CRASHED", "name": "Crashed", "message": f"its process {run.pid} was killed"}
        # Where Prefect's worker lives it tells of the run itself, but not of the tasks: they would hold their slots.
        theirs = {"flow_runs": {"id": {"any_": [run.run_id]}}, "task_runs": {"state": {"type": {"any_": UNFINISHED}}}}
        for task in call(url, "POST", "task_runs/filter", theirs) or ():
            call(url, "POST", f"task_runs/{task['id']}/set_state", {"state": state, "force": True})
        found = call(url, "GET", f"flow_runs/{run.run_id}")
        if found and found["state_type"] in UNFINISHED:
            call(url, "POST", f"flow_runs/{run.run_id}/set_state", {"state": state, "force": True})
            log(f"the run {found['name']} of {run.flow} was killed (process {run.pid}): set to Crashed")
        writer.settled(run, root)
