"""A small producer of data sets, an S3 server on loopback, and what another team would run."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import botocore.session
import pytest
import yaml

from pipelines.core.shards import ROOT
from tests.pipelines.conftest import Workspace

BUCKET = "versions"
EXPORT = """
import hashlib, pathlib, sys
import polars as pl
out = pathlib.Path("datasets/exported")
(out / "webdataset").mkdir(parents=True, exist_ok=True)
seed = pathlib.Path("datasets/seed.txt").read_text().strip()
ids = [f"{seed}-{k}" for k in range(5)]
sets = pl.DataFrame({"set_id": ids, "licence": ["CC0"] * 4 + ["CC-BY"], "consent": ["given"] * 5})
sets.write_parquet(out / "train-00000.parquet")
(out / "README.md").write_text(f"# card of {seed}\\n")
(out / "webdataset/n1.tar").write_bytes(seed.encode() * 100_000)
names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
sums = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
(out / "SHA256SUMS").write_text("".join(f"{value}  {name}\\n" for name, value in sums.items()))
"""
VALIDATE = """
import json, pathlib
out = pathlib.Path("datasets/validated")
out.mkdir(parents=True, exist_ok=True)
faults = pathlib.Path("datasets/faults.txt").read_text().split("\\n")[:-1]
(out / "results.json").write_text(json.dumps({"faults": faults, "suites": {}}))
raise SystemExit(bool(faults))
"""
STAGES = {
    "validate": {
        "cmd": "python validate.py",
        "deps": ["validate.py", "datasets/faults.txt"],
        "outs": ["datasets/validated"],
    },
    "export": {
        "cmd": "python export.py",
        "deps": ["export.py", "datasets/seed.txt", "datasets/validated/results.json"],
        "outs": ["datasets/exported"],
    },
}


class Producer(Workspace):
    """A git and DVC repository with this project's artifact and remote, and stages that take no time."""

    def make(self, seed: str) -> None:
        """Another data set, committed."""
        (self.path / "datasets/seed.txt").write_text(f"{seed}\n")
        self.repro("export")
        self.commit(seed)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.commit_staged(message)

    def commit_staged(self, message: str) -> None:
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def remote(self, url: str, **settings: str) -> None:
        """Another default remote, committed."""
        self.run("dvc", "remote", "add", "--default", "store", url)
        for key, value in settings.items():
            self.run("dvc", "remote", "modify", "store", key, value)
        self.commit("remote")

    def tags(self) -> list[str]:
        return self.run("git", "tag").stdout.split()

    def exported(self) -> dict[str, bytes]:
        return files(self.path / "datasets/exported")


def files(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="session")
def made_producer(tmp_path_factory: pytest.TempPathFactory) -> Producer:
    """Do not change it: take `producer`, a copy."""
    path = tmp_path_factory.mktemp("producer") / "umo"
    (path / "datasets").mkdir(parents=True)
    (path / ".dvc").mkdir()
    for name in ("params.yaml", ".dvc/config", ".gitignore"):
        shutil.copyfile(ROOT / name, path / name)
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES, "artifacts": artifacts}))
    (path / "export.py").write_text(EXPORT)
    (path / "validate.py").write_text(VALIDATE)
    (path / "datasets/faults.txt").write_text("")
    producer = Producer(path)
    producer.run("git", "init", "--quiet")
    for key, value in {"user.name": "t", "user.email": "t@example.org"}.items():
        producer.run("git", "config", key, value)
    producer.make("first")
    return producer


@pytest.fixture
def producer(made_producer: Producer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Producer:
    """A producer with one data set, not released yet; the current folder for the test."""
    shutil.copytree(made_producer.path, tmp_path / "umo", symlinks=True)
    monkeypatch.chdir(tmp_path / "umo")
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return Producer(tmp_path / "umo")


class Server:
    """S3 on loopback, with a bucket; nothing but the credentials it gave out is let in while `strict`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.s3 = self.client("s3")
        iam = self.client("iam")
        iam.create_user(UserName="team")
        allowed = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'
        iam.put_user_policy(UserName="team", PolicyName="store", PolicyDocument=allowed)
        key = iam.create_access_key(UserName="team")["AccessKey"]
        self.credentials = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def client(self, service: str) -> botocore.client.BaseClient:
        return botocore.session.Session().create_client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="root",
            aws_secret_access_key="root",
        )

    def strict(self, on: bool) -> None:
        """Whether requests must be signed by somebody known."""
        count = b"0" if on else b"inf"
        urlopen(Request(f"{self.url}/moto-api/reset-auth", count, {"Content-Type": "text/plain"}, method="POST"))

    def stored(self, prefix: str = "") -> list[str]:
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for entry in found.get("Contents", [])]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    thread = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    thread.start()
    host, port = thread.get_host_and_port()
    yield Server(f"http://{host}:{port}")
    thread.stop()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server with an empty bucket, and an environment as a user would set it, without anything of the caller's."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        server.credentials | {"AWS_ENDPOINT_URL": server.url, "AWS_DEFAULT_REGION": "us-east-1"}
    ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server.s3.create_bucket(Bucket=BUCKET)
    yield server
    server.strict(False)
    for key in server.stored():
        server.s3.delete_object(Bucket=BUCKET, Key=key)
    server.s3.delete_bucket(Bucket=BUCKET)
