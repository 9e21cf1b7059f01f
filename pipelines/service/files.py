"""`python -m pipelines.service.files PORT CACHE`: serves, on this machine alone, what artifacts link to."""

import mimetypes
import shutil
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pipelines.service.links import find

LOOPBACK = "127.0.0.1"
TEXT = {".md": "text/plain; charset=utf-8", ".json": "application/json", ".html": "text/html; charset=utf-8"}


def server(port: int, root: Path, cache: Path) -> ThreadingHTTPServer:
    """A server for the workspace in `root` and DVC's cache; port 0 takes any that is free."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page elsewhere that gives its own name to this address is not answered.
            if self.headers.get("Host", "").rpartition(":")[0] not in (LOOPBACK, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            if (file := find(self.path, root, cache)) is None:
                self.send_error(HTTPStatus.NOT_FOUND, "Gone, or never here: dvc pull, or run the stage again")
                return
            name = Path(self.path.partition("?")[0])  # in the cache a file has no suffix
            kind = TEXT.get(name.suffix) or mimetypes.guess_type(name.name)[0] or "application/octet-stream"
            with file.open("rb") as content:
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(file.stat().st_size))
                self.end_headers()
                shutil.copyfileobj(content, self.wfile)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: which faces were looked at is nobody's business."""

    return ThreadingHTTPServer((LOOPBACK, port), Handler)


if __name__ == "__main__":
    server(int(sys.argv[1]), Path.cwd(), Path(sys.argv[2])).serve_forever()
