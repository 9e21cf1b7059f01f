"""The service: the scores of `umo evaluate`, its limits, and what it says of requests that it cannot take."""

import json
import logging
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from umo.evaluation.cases import parse_case
from umo.evaluation.scoring import evaluate
from umo.serving.app import create_app
from umo.serving.work import Limits, Scorer, Stopped

DOCS = Path(__file__).resolve().parents[3] / "docs/how-to/serve.md"
RED, GREEN = (255, 0, 0), (0, 255, 0)
CASES = [
    {"case_id": "1", "prompt": "Two people", "references": ["ann.jpg", "bob.jpg"], "images": ["out/1-0.png"]},
    {
        "case_id": "2",
        "prompt": "One",
        "references": [["ann.jpg", "ann-2.jpg"]],
        "images": ["out/2-0.png", "out/2-1.png"],
    },
]


@pytest.fixture
def folder(tmp_path: Path, bands) -> Path:
    people = {
        "ann.jpg": [RED],
        "ann-2.jpg": [(250, 40, 0)],
        "bob.jpg": [GREEN],
        "out/1-0.png": [GREEN, (200, 90, 0)],
        "out/2-0.png": [RED],
        "out/2-1.png": [],
    }
    (tmp_path / "out").mkdir()
    for name, colours in people.items():
        Image.fromarray(bands(*colours)).save(tmp_path / name, format="PNG")
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in CASES))
    return tmp_path


@pytest.fixture
def service(band_judge) -> Callable[..., TestClient]:
    """service(limit=...) -> a client of one that a `BandJudge` works for."""
    return lambda **limits: TestClient(create_app(band_judge, Limits(**limits)))


def files(folder: Path, *names: str) -> list[tuple[str, tuple[str, bytes]]]:
    wanted = names or [path for case in CASES for path in parse_case(json.dumps(case)).paths]
    return [("pictures", (name, (folder / name).read_bytes())) for name in dict.fromkeys(wanted)]


def post(client: TestClient, folder: Path, **changed: Any) -> Any:
    given = {"data": {"cases": (folder / "cases.jsonl").read_text()}, "files": files(folder)}
    return client.post("/score", **(given | changed))


def test_the_answer_is_that_of_umo_evaluate(folder: Path, service, band_judge) -> None:
    answer = post(service(), folder)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    rows = found.pop("scores")
    expected = evaluate(folder / "cases.jsonl", folder / "scores", band_judge)
    assert found == json.loads(json.dumps(expected))
    assert [row["id_sim_strict"] for row in rows] == pytest.approx([(1 + 200 / 48500**0.5) / 2, 0.998, 0], abs=2e-2)
    assert [row["image"] for row in rows] == ["out/1-0.png", "out/2-0.png", "out/2-1.png"]


def test_cases_may_be_a_file_too(folder: Path, service) -> None:
    sent = [("cases", ("cases.jsonl", (folder / "cases.jsonl").read_bytes())), *files(folder)]
    assert service().post("/score", files=sent).json()["cases"] == 2


def test_it_describes_itself(service) -> None:
    client = service(waiting=3)
    assert client.get("/health").json() == {"status": "ok"}
    said = client.get("/judge").json()
    assert said["judge"]["name"] == "bands" and said["limits"]["waiting"] == 3
    described = client.get("/openapi.json").json()["paths"]["/score"]["post"]
    assert {"200", "400", "408", "413", "422", "429", "504"} <= described["responses"].keys()
    body = described["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["required"] == ["cases", "pictures"]


def test_nothing_is_written_or_logged_of_what_is_sent(folder: Path, service, monkeypatch, caplog) -> None:
    """Not even a temporary file, however large a picture is."""
    noise = np.random.default_rng(0).integers(0, 255, (900, 960, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "out/2-0.png")
    assert (folder / "out/2-0.png").stat().st_size > 2_000_000

    def refused(*arguments: object, **named: object) -> None:
        raise AssertionError("a temporary file was opened")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    caplog.set_level(logging.INFO, logger="umo.serve")
    assert post(service(), folder).status_code == 200
    said = [record.getMessage() for record in caplog.records if record.name == "umo.serve"]
    assert said == ["2 cases, 3 pictures"]


@pytest.mark.parametrize(
    ("limits", "status", "reason"),
    [
        ({"bytes": 1000}, 413, "bytes: at most 1,000 are taken"),
        ({"pictures": 2}, 413, "at most 2 pictures are taken"),
    ],
)
def test_too_much_is_turned_away(folder: Path, service, limits, status: int, reason: str) -> None:
    answer = post(service(**limits), folder)
    assert answer.status_code == status and reason in answer.json()["error"]


def test_a_body_that_does_not_say_its_length_is_cut_too(folder: Path, service) -> None:
    def stream() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a.png"\r\n\r\n'
        for _ in range(100):
            yield b"0" * 100

    answer = service(bytes=5000).post(
        "/score", content=stream(), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 413 and "over 5,000 bytes" in answer.json()["error"]


def test_a_picture_of_too_many_pixels_is_a_failure_of_its_case(folder: Path, service) -> None:
    """As every picture that cannot be read: few bytes may be many pixels."""
    Image.new("L", (3000, 3000)).save(folder / "out/2-0.png")
    found = post(service(pixels=1_000_000), folder).json()
    (failure,) = found["failures"]
    assert failure["path"] == "out/2-0.png" and "over the limit of 1,000,000 pixels" in failure["error"]
    assert found["images"] == 3


def _cases(*lines: str) -> dict[str, dict[str, str]]:
    return {"data": {"cases": "\n".join(lines)}}


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({"data": {}}, 422, "no 'cases': give one JSON object a line"),
        (_cases("not json"), 422, "cases, line 1: not JSON"),
        (_cases(""), 422, "no 'cases'"),
        (_cases("{}"), 422, "cases, line 1: missing ['case_id', 'images', 'prompt', 'references']"),
        (_cases(json.dumps(CASES[0]), json.dumps(CASES[0])), 422, "line 2: case_id '1' is already taken"),
        (_cases(json.dumps(CASES[0])), 422, "'ann-2.jpg' belongs to no case; leave it out, or name it"),
        (
            _cases(json.dumps(CASES[0] | {"images": ["../../etc/passwd"]})),
            422,
            "case 1: '../../etc/passwd' was not sent; send it under that name",
        ),
        ({"files": [("pictures", ("a.png", b"x")), ("pictures", ("a.png", b"y"))]}, 422, "'a.png' was sent twice"),
        ({"files": None}, 400, "send multipart/form-data"),
    ],
)
def test_a_request_that_cannot_be_taken_is_told_in_a_line(
    folder: Path, service, band_judge, changed: dict, status: int, reason: str
) -> None:
    answer = post(service(), folder, **changed)
    assert answer.status_code == status and reason in answer.json()["error"], answer.text
    assert "\n" not in answer.json()["error"]
    assert band_judge.calls.detect == 0


def test_a_broken_form_is_told(service) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = service().post("/score", content=b"--y\r\nno form", headers=headers)
    assert answer.status_code in (400, 422) and answer.json()["error"]
    assert service().get("/nowhere").json() == {"error": "Not Found"}


class Held:
    """A judge that waits for leave."""

    def __init__(self, judge) -> None:
        self.judge, self.leave, self.began = judge, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.judge, name)

    def detect(self, images) -> Any:
        self.began.set()
        assert self.leave.wait(30)
        return self.judge.detect(images)


def test_more_than_may_wait_are_turned_away_and_the_others_answered(folder: Path, band_judge) -> None:
    judge = Held(band_judge)
    answers: list[int] = []
    with TestClient(create_app(judge, Limits(waiting=0))) as client:
        first = threading.Thread(target=lambda: answers.append(post(client, folder).status_code))
        first.start()
        assert judge.began.wait(30)
        turned = post(client, folder)
        assert turned.status_code == 429 and "come again" in turned.json()["error"]
        assert turned.headers["retry-after"] == "5"
        judge.leave.set()
        first.join()
        assert answers == [200]
        assert post(client, folder).status_code == 200


def test_work_ends_when_its_time_is_over_or_its_client_is_gone(folder: Path, band_judge) -> None:
    cases = [parse_case(json.dumps(case)) for case in CASES]
    pictures = {name: (folder / name).read_bytes() for case in cases for name in case.paths}
    gone = threading.Event()
    with pytest.raises(Stopped, match=r"0 of 2 cases were scored in 0 s: send fewer at once"):
        Scorer(band_judge, Limits(seconds=0)).score(cases, pictures, gone)
    gone.set()
    with pytest.raises(Stopped, match="the client went away"):
        Scorer(band_judge, Limits()).score(cases, pictures, gone)
    assert band_judge.calls.detect == 0


@pytest.fixture
def listening(band_judge) -> Iterator[int]:
    """The port of a server on this machine."""
    config = uvicorn.Config(create_app(band_judge, Limits(seconds=2)), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not there")
def test_the_example_with_curl(folder: Path, listening: int) -> None:
    """As it stands on its page."""
    block = DOCS.read_text().split("```sh\n")[1].split("```")[0].replace(":8000", f":{listening}")
    (folder / "cases.jsonl").write_text(json.dumps(CASES[0]) + "\n")
    done = subprocess.run(block, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["cases"] == 1
    (folder / "cases.jsonl").write_text("{}")
    done = subprocess.run(block, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 22 and "missing" in json.loads(done.stdout)["error"]


def test_a_client_that_goes_away_leaves_the_service_in_order(folder: Path, listening: int) -> None:
    for _ in range(12):  # more than may wait
        with socket.create_connection(("127.0.0.1", listening)) as connection:
            connection.sendall(
                b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                b"Content-Length: 1000\r\n\r\n--x\r\n"
            )
    until = time.monotonic() + 30
    while True:
        sent = {"data": {"cases": (folder / "cases.jsonl").read_text()}, "files": files(folder)}
        answer = httpx.post(f"http://127.0.0.1:{listening}/score", **sent)  # type: ignore[arg-type]
        if answer.status_code == 200:
            break
        assert answer.status_code == 429 and time.monotonic() < until
        time.sleep(0.2)
