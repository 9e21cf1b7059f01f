"""`umo serve` under load: clients that ask without a pause, what it answers, and whether its memory grows."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import cv2
import httpx
import psutil

from bench.benchmark_score import picture, reference
from bench.result import Result
from umo.errors import WorkFailed

NAME = "serve-load"
BAR = 1.05
CLIENTS = 8
WARM = 0.25  # of the time, after which memory is measured for the first time


def run(duration: float = 60.0) -> Result:
    """Memory of the service at the end / after a quarter of the time; None where it answered with an error.

    Args:
        duration: seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "umo.cli", "serve", "--port", str(port), "--waiting", "4"])
    answers, memory = Counter[str](), []
    try:
        wait_for(address, server)
        service = psutil.Process(server.pid)
        end = time.monotonic() + duration
        clients = [threading.Thread(target=ask, args=(address, k, end, answers)) for k in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(WARM * duration)
        memory.append(service.memory_info().rss)
        for client in clients:
            client.join()
        memory.append(service.memory_info().rss)
    finally:
        server.terminate()
        server.wait()
    others = {answer: count for answer, count in answers.items() if answer not in ("200", "429")}
    return Result(
        name=NAME,
        value=None if others else memory[1] / memory[0],
        unit="memory of the service at the end / after a quarter of the time",
        against=f"itself, with {CLIENTS} clients that ask without a pause; none if an answer was neither 200 nor 429",
        bar=BAR,
        lower_is_better=True,
        details={"seconds": duration, "answers": dict(answers), "megabytes": [round(size / 1e6) for size in memory]},
    )


def wait_for(address: str, server: subprocess.Popen) -> None:
    """Until it answers; WorkFailed where it ends before."""
    while server.poll() is None:
        try:
            httpx.get(f"{address}/health")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise WorkFailed("umo serve ended before it answered; its own message is above")


def ask(address: str, client: int, end: float, answers: Counter[str]) -> None:
    """Send cases until the time is over; one that is turned away is sent again."""
    image, cast = picture(client)
    sent = {"1.png": image} | {f"{person}.png": reference(person) for person in cast}
    files = [("pictures", (name, cv2.imencode(".png", one)[1].tobytes())) for name, one in sent.items()]
    references = [f"{person}.png" for person in cast]
    case = {"case_id": "1", "prompt": "two people", "references": references, "images": ["1.png"]}
    while time.monotonic() < end:
        try:
            answer = httpx.post(f"{address}/score", data={"cases": json.dumps(case)}, files=files, timeout=60)
            answers[str(answer.status_code)] += 1
        except httpx.TransportError as error:
            answers[type(error).__name__] += 1
        time.sleep(0.02)
