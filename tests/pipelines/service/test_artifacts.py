"""What the UI shows, and that the links in it lead to the version that is spoken of and nowhere else."""

import re
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from pipelines.core import products
from pipelines.service import artifacts, files, links
from pipelines.service.links import Links

REVISION = "0123456789ab"
FUNNEL = {
    "pictures": 10,
    "kept": 6,
    "reasons": {"too few people": 1, "a | b": 3},
    "by_split_and_n": {"train": {"1": 3, "2": 1}, "test": {"1": 2}},
}
RESULTS = {"faults": ["sets: too few"], "suites": {"sets": {"rows": 6, "met": 1, "expectations": 2}}}
NOWHERE = Links("")


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_funnel_counts_every_reason():
    page = artifacts.funnel(FUNNEL, REVISION, NOWHERE)
    table = rows(page)
    assert table[2:6] == [
        ["considered", "10"],
        [r"− a \| b", "3"],
        ["− too few people", "1"],
        ["**kept as sets**", "**6**"],
    ]
    assert ["train", "4", "3", "1"] in table
    assert ["test", "2", "2", "0"] in table
    assert REVISION in page


def test_scores_have_their_intervals():
    score = {"mean": 0.704, "low": 0.66, "high": 0.75}
    scores = dict.fromkeys(artifacts.MEASURES, score) | {"id_conf": {"mean": None, "low": None, "high": None}}
    table = rows(artifacts.metrics({"mimr": scores}, REVISION, NOWHERE))
    assert table[2] == ["mimr", "0.70 [0.66, 0.75]", "none", "0.70 [0.66, 0.75]", "0.70 [0.66, 0.75]"]


def test_a_failed_validation_leads_with_the_fault():
    page = artifacts.validation(RESULTS, REVISION, NOWHERE)
    assert page.startswith("# Validation failed\n\n- **sets: too few**")
    assert ["sets", "6", "1 of 2"] in rows(page)
    assert artifacts.validation(RESULTS | {"faults": []}, REVISION, NOWHERE).startswith("# Validation\n")


def test_curves_are_lines_of_blocks():
    validation = [{"update": k, "validation/reward": value} for k, value in enumerate((0.0, 0.5, 1.0))]
    table = rows(artifacts.curves({"mimr": {"validation": validation}, "sft": {"validation": []}}, REVISION, NOWHERE))
    assert table[2:] == [["mimr", "reward", "▁▅█", "0.000", "1.000"]]
    assert artifacts.spark([0.3, 0.3]) == "▁▁"


def test_pages_are_of_what_is_there(toy):
    found = artifacts.of_data(toy.path, REVISION, NOWHERE) | artifacts.of_training(toy.path, REVISION, NOWHERE)
    assert found.keys() == {"funnel", "validation", "data-set-card", "contact-sheet", "metrics", "curves"}
    assert all(re.fullmatch(r"[a-z-]+", key) for key in found)  # what Prefect takes for a key
    assert artifacts.of_data(toy.path / "nowhere", REVISION, NOWHERE) == {}


@pytest.fixture
def base(toy) -> Iterator[str]:
    server = files.server(0, toy.path, toy.path / ".dvc/cache")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_old_page_shows_its_own_version(toy, base):
    old = Links.read(base).to(products.EXPORTED, "README.md")
    (toy.path / "stage.py").write_text((toy.path / "stage.py").read_text().replace("# card", "# another card"))
    toy.repro("export")
    new = Links.read(base).to(products.EXPORTED, "README.md")
    assert urlopen(old).read() == b"# card"
    assert urlopen(new).read() == b"# another card"
    assert urlopen(new).headers["Content-Type"] == "text/plain; charset=utf-8"


def test_a_failed_validation_is_found_by_its_work(toy, base):
    toy.params(validate={"min_sets": 1000})
    assert toy.run("dvc", "repro", "validate", check=False).returncode
    page = artifacts.of_failed_validation(toy.path, REVISION, Links.read(base))["validation"]
    [address] = re.findall(r"\]\((http[^)]+)\)", page)
    toy.run("git", "checkout", "--quiet", "HEAD", "--", "params.yaml")
    toy.run("dvc", "checkout", "--force")
    assert b"fewer than" in urlopen(address).read()


@pytest.mark.parametrize(
    "path",
    [
        "params.yaml",
        "datasets/photos.txt",
        "datasets/exported/now/train-00000.parquet",
        "datasets/exported/now/../../photos.txt",
        "datasets/exported/now/contact_sheet_/../../../photos.jpg",
        "datasets/validated/now/data_docs/../../../params.yaml",
        "datasets/validated/now/data_docs/%2e%2e/%2e%2e/%2e%2e/params.yaml",
        f".work/validate/{'..'}/data_docs/index.html",
        f"datasets/exported/{'0' * 32}.dir/README.md",
        "datasets/exported/now/contact_sheet_a/../train-00000.parquet",
        "datasets/validated/now/data_docs/../results.json",
        "runs/report/HASH/train-00000.parquet",  # another output's, by its hash
        "runs/report/HASH/README.md",
    ],
)
def test_nothing_else_is_served(toy, base, path):
    (toy.path / "datasets/photos.jpg").write_text("a face")
    path = path.replace("HASH", Links.read("").hashes[str(products.EXPORTED)])
    connection = HTTPConnection(base.removeprefix("http://"))
    connection.request("GET", f"/{path}")
    assert connection.getresponse().status == 404


def test_another_name_for_this_machine_is_refused(base):
    connection = HTTPConnection(base.removeprefix("http://"))
    connection.request("GET", "/datasets/exported/now/README.md", headers={"Host": "elsewhere.example:80"})
    assert connection.getresponse().status == 403


def test_a_forgotten_file_is_gone_from_the_links_too(toy, base):
    address = Links.read(base).to(products.EXPORTED, "contact_sheet_train.jpg")
    assert urlopen(address).status == 200
    version = Links.read("").hashes[str(products.EXPORTED)]
    sheet = (toy.path / products.EXPORTED / "contact_sheet_train.jpg").read_bytes()
    cached = [path for path in (toy.path / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    (file,) = [path for path in cached if path.read_bytes() == sheet]
    file.unlink()
    with pytest.raises(HTTPError, match="404"):
        urlopen(address)
    assert links.find(f"{products.EXPORTED}/{version}/README.md", Path(), Path(".dvc/cache")) is not None
