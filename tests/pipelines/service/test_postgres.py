"""make serve with Postgres in place of SQLite."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.service.serve import HOME
from tests.pipelines.service.toy import BY_HAND, Served, free_port

pytestmark = [pytest.mark.server, pytest.mark.long]  # in short: test_serve.py


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of an empty database."""
    if not shutil.which("initdb") or not shutil.which("pg_ctl"):
        pytest.skip("no Postgres here")
    # It refuses to be run by root, and its folder's path must be one that another user can enter.
    user = "nobody" if os.geteuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="umo-postgres-")), free_port()
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    try:
        run("initdb", "--auth=trust", "--username=umo", "--pgdata", str(data))
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        run("pg_ctl", "--pgdata", str(data), "--log", str(folder / "log"), "--options", options, "--wait", "start")
        yield f"postgresql+asyncpg://umo@127.0.0.1:{port}/postgres"
        run("pg_ctl", "--pgdata", str(data), "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_flows_run_on_postgres(toy, postgres):
    port = free_port()
    toy.environ = BY_HAND | {"PORT": str(port), "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres}
    served = Served(toy, port)
    try:
        served.serve()
        _, state, message = served.run("build_dataset")
        assert (state, message) == ("COMPLETED", "everything is up to date")
    finally:
        served.stop()
    assert not (toy.path / HOME / "prefect.db").exists()
    noted = [file for file in (toy.path / HOME).rglob("*") if file.is_file() and b"postgresql+" in file.read_bytes()]
    assert noted == []  # the address may hold a password
