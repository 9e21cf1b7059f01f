"""The HTTP side: what is accepted, what is turned away, and with which words.

A request is scored by `umo.serving.work` and answered; neither pictures nor embeddings are kept or logged.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException as StarletteError
from starlette.formparsers import MultiPartException, MultiPartParser

from umo.errors import BadInput
from umo.evaluation.cases import Case
from umo.faces.base import FaceModel
from umo.serving.work import Limits, Scorer, Stopped, read_request

LOG = logging.getLogger("umo.serve")
LOOK_AGAIN = 0.2  # seconds between two looks whether the client is still there
CASES, PICTURES = "cases", "pictures"
CASES_AT_MOST = 10_000_000  # bytes
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [CASES, PICTURES],
                "properties": {
                    CASES: {
                        "type": "string",
                        "description": "One case or several, a JSON object a line, as umo evaluate reads them. Paths "
                        "are names of pictures in the same request.",
                    },
                    PICTURES: {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "description": "Every picture that the cases name, each under the file name that they give it.",
                    },
                },
            }
        }
    },
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be read."},
    408: {"description": "The upload took too long."},
    413: {"description": "More bytes, pictures or pixels than are taken."},
    422: {"description": "A case is none, or its pictures were not sent."},
    429: {"description": "Too many are waiting; Retry-After says when to come again."},
    504: {"description": "Scoring took too long."},
}


def create_app(judge: FaceModel, limits: Limits | None = None) -> FastAPI:
    """The service of one judge."""
    limits = limits or Limits()
    scorer, room = Scorer(judge, limits), asyncio.Semaphore(1 + limits.waiting)

    app = FastAPI(
        title="umo",
        version=version("umo"),
        description="Scores pictures of several people against photographs of them. Nothing is kept after an answer.",
        docs_url=None,  # their pages load scripts from elsewhere; /openapi.json has all that they show
        redoc_url=None,
    )

    @app.exception_handler(StarletteError)
    async def _said(request: Request, error: StarletteError) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether it answers."""
        return {"status": "ok"}

    @app.get("/judge")
    async def who_judges() -> dict[str, Any]:
        """The judge, its checksums and threshold, and what a request may cost."""
        return {"judge": scorer.identity, "limits": vars(limits)}

    @app.post("/score", openapi_extra={"requestBody": BODY}, responses=ANSWERS)
    async def score(request: Request) -> JSONResponse:
        """Score one case or several: what `umo evaluate` writes to metrics.json, and `scores`, a row a picture."""
        if room.locked():
            raise HTTPException(429, "too many requests are waiting: come again", {"Retry-After": "5"})
        async with room:
            text, pictures = await _read(request, limits)
            try:
                cases = await asyncio.to_thread(read_request, text, pictures)
            except BadInput as error:
                raise HTTPException(422, str(error)) from error
            found = await _answer(request, scorer, cases, pictures)
        LOG.info("%d cases, %d pictures", found["cases"], found["images"])
        return JSONResponse(found)

    return app


async def _answer(
    request: Request, scorer: Scorer, cases: Sequence[Case], pictures: Mapping[str, bytes]
) -> dict[str, Any]:
    """What the judge's thread gives; where the client goes away it is told to stop."""
    gone = threading.Event()
    work = asyncio.wrap_future(scorer.submit(cases, pictures, gone))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=LOOK_AGAIN)
            if await request.is_disconnected():
                gone.set()
        return await work
    except Stopped as error:
        raise HTTPException(504, str(error)) from error
    finally:
        gone.set()


async def _read(request: Request, limits: Limits) -> tuple[str, dict[str, bytes]]:
    """The cases' text, and the pictures by their names."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(400, f"send multipart/form-data with '{CASES}' and '{PICTURES}'")
    try:
        async with asyncio.timeout(limits.seconds), _form(request, limits) as form:
            text = form.get(CASES)
            if isinstance(text, UploadFile):
                text = (await text.read()).decode()
            if not text:
                raise HTTPException(422, f"no '{CASES}': give one JSON object a line")
            pictures: dict[str, bytes] = {}
            for sent in form.getlist(PICTURES):
                if not isinstance(sent, UploadFile) or not sent.filename:
                    raise HTTPException(422, f"'{PICTURES}' must be files with names")
                if sent.filename in pictures:
                    raise HTTPException(422, f"{sent.filename!r} was sent twice; give each picture a name of its own")
                pictures[sent.filename] = await sent.read()
            return text, pictures
    except TimeoutError as error:
        raise HTTPException(408, f"the upload took over {limits.seconds:g} s") from error
    except UnicodeDecodeError as error:
        raise HTTPException(422, f"'{CASES}' is not text in UTF-8") from error


@asynccontextmanager
async def _form(request: Request, limits: Limits) -> AsyncIterator[FormData]:
    """The form, in memory: no part of it is written to a disk."""
    parser = MultiPartParser(
        request.headers,
        _within(request, limits),
        max_files=limits.pictures,
        max_fields=2,
        max_part_size=CASES_AT_MOST,
    )
    parser.spool_max_size = limits.bytes
    try:
        form = await parser.parse()
    except MultiPartException as error:
        status = 413 if "Too many" in error.message or "exceeded" in error.message else 400
        raise HTTPException(status, f"{error.message}; at most {limits.pictures} pictures are taken") from error
    try:
        yield form
    finally:
        await form.close()


async def _within(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body, as long as it is short enough."""
    said, count = request.headers.get("content-length", ""), 0
    if said.isdecimal() and int(said) > limits.bytes:
        raise HTTPException(413, f"{int(said):,} bytes: at most {limits.bytes:,} are taken")
    async for part in request.stream():
        count += len(part)
        if count > limits.bytes:
            raise HTTPException(413, f"over {limits.bytes:,} bytes, which is the most that is taken")
        yield part
