"""Ray's actors on a local cluster of two workers: the same products, and a killed actor costs a retry of its shard."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.core import executors, products, shards
from pipelines.core.executors import Machine
from pipelines.core.params import load
from pipelines.core.shards import tree_digest
from pipelines.ingest import stage as ingest
from pipelines.measure import stage as measure
from pipelines.synthesise import stage as synthesise
from tests.pipelines.conftest import photograph_folder
from tests.pipelines.core import shard_work
from tests.pipelines.core.shard_work import ERRORS, WHOLE, go, published, told_by_workers
from umo.errors import BadInput, WorkFailed

RAY = Machine(executor="ray", workers=2)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two workers; Ray takes seconds to start, so that all tests share them."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(shards.ROOT)
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_it_is_not_imported_unless_it_is_the_executor():
    script = "import sys, pipelines.measure.stage, pipelines.synthesise.stage; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=shards.ROOT, check=True)


def test_a_killed_actor_costs_a_retry_of_its_shard():
    assert go(shard_work.die_once, RAY).made == {"letters": 6}
    assert Path("died").exists() and published() == WHOLE
    assert sorted(shard_work.done()) == list("abcdef"), "another shard was done again"
    assert not list(shards.WORK.rglob("half.txt"))


def test_a_shard_that_kills_every_actor_is_given_up_and_the_others_are_kept(monkeypatch):
    monkeypatch.setattr(executors, "RETRIES", 1)
    with pytest.raises(WorkFailed, match=r"^ingest: a worker died 2 times at the same work: [^\n]*is kept$"):
        go(shard_work.always_die, RAY)
    assert not Path("out").exists()
    monkeypatch.setattr(executors, "RETRIES", 3)
    assert go(shard_work.letter, RAY).made == {"letters": 6}
    assert published() == WHOLE


@pytest.mark.parametrize(("names", "error", "line"), ERRORS)
def test_an_error_is_one_line_and_is_not_tried_again(names, error, line):
    with pytest.raises(error) as raised:
        go(shard_work.fail, RAY, names)
    assert str(raised.value) == line


def test_actors_share_the_cores_and_load_a_network_once(tmp_path):
    go(shard_work.describe_worker, RAY, "abcd")
    told = told_by_workers()
    assert os.getpid() not in {one["process"] for one in told}
    assert {one["folder"] for one in told} == {str(tmp_path)}


def test_an_actor_takes_a_gpu_where_the_device_is_one(cluster, monkeypatch):
    """None is here, so that it cannot be placed; what is asked for is what counts."""
    asked = []
    real = cluster.remote
    monkeypatch.setattr(cluster, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(cluster, "remote", lambda **options: asked.append(options) or real(**options | {"num_gpus": 0}))
    go(shard_work.letter, Machine(executor="ray", workers=2, device="cuda"))
    assert asked[0]["num_gpus"] == 1 and asked[0]["num_cpus"] == 1


def test_an_actor_that_could_not_be_placed_is_not_waited_for():
    with pytest.raises(BadInput, match=r"no GPU for machine\.device: cuda"):
        go(shard_work.letter, Machine(executor="ray", workers=2, device="cuda"))
    assert go(shard_work.letter, Machine(executor="ray", workers=9)).made == {"letters": 6}, "two cores are there"


def test_serial_processes_and_actors_make_the_same_measurements():
    photos = Path("datasets/photos")
    for person in (1, 2, 3, 4):
        for k in (1, 2, 3):
            target = photos / f"s{person}/{k}.pgm"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photograph_folder() / f"s{person}/{k}.pgm", target)
    group = importlib.util.find_spec("insightface").submodule_search_locations[0]
    shutil.copy(Path(group) / "data/images/t1.jpg", photos / "group.jpg")
    Path("datasets/sources.yaml").write_text("all: {path: datasets/photos, licence: CC0, tight_crop: true}")
    shutil.copy(shards.ROOT / "params.yaml", "params.yaml")
    made = {}
    for executor in ("serial", "process", "ray"):
        machine = Machine(executor=executor, workers=2)
        ingest.run(load("ingest"), machine)
        measure.run(load("measure"), machine, "ingested")
        made[executor] = [tree_digest(path) for path in (products.INGESTED, products.MEASURED_PHOTOS)]
        shutil.rmtree(products.INGESTED)
        shutil.rmtree(products.MEASURED)
        shutil.rmtree(shards.WORK)
    assert made["ray"] == made["process"] == made["serial"]


def test_actors_draw_the_same_scenes(workspace, monkeypatch):
    """Of a workspace where the whole graph was run serially."""
    monkeypatch.chdir(workspace.path)
    before = tree_digest(products.SYNTHESISED)
    shutil.rmtree(shards.WORK / "synthesise")
    synthesise.run(load("synthesise"), RAY)
    assert tree_digest(products.SYNTHESISED) == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_no_ray_is_is_one_line(address):
    with pytest.raises(BadInput, match=rf"^machine.ray_address: no Ray at '{address}' \([^\n]*ray start --head\)$"):
        executors.start_ray(Machine(executor="ray", ray_address=address))
