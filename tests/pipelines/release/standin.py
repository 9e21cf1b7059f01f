"""The Hugging Face hub on loopback, as far as a release speaks to it: HTTP, git's LFS, no Xet."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

WRITES, READS = "hf_writes", "hf_reads"  # the tokens it knows


@dataclass
class Commit:
    message: str
    files: dict[str, bytes]

    @property
    def oid(self) -> str:
        listed = "".join(f"{name} {hashlib.sha1(data).hexdigest()}\n" for name, data in sorted(self.files.items()))
        return hashlib.sha1(f"{self.message}\n{listed}".encode()).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {".gitattributes": b"*.parquet"})])
    tags: dict[str, str] = field(default_factory=dict)  # name -> commit

    def at(self, revision: str) -> Commit | None:
        oid = self.commits[-1].oid if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


class StandIn(ThreadingHTTPServer):
    """What it holds can be read and set; `faults` maps a pattern of `METHOD path` to the status that it answers."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS's, by sha256
        self.faults: dict[str, int] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    @staticmethod
    def started() -> "StandIn":
        """One that answers."""
        server = StandIn()
        Thread(target=server.serve_forever, daemon=True).start()
        return server

    def stop(self) -> None:
        """End it."""
        self.shutdown()
        self.server_close()

    def posts(self) -> list[str]:
        """What was asked that changes something."""
        return [called for called in self.asked if not called.startswith("GET")]


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        called = f"{self.command} {path}"
        self.server.asked.append(called)
        if status := next((status for pattern, status in self.server.faults.items() if re.search(pattern, called)), 0):
            return self.say(status, {"error": "as the test wants"})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not path.startswith("/objects/"):  # a link that LFS gave out carries no token
            if token not in (WRITES, READS):
                return self.say(401, {"error": "Invalid credentials in Authorization header"})
            if self.command == "POST" and token == READS and "/paths-info/" not in path:
                return self.say(403, {"error": "this token may only read"})
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, called):
                return method(self, body, *found.groups())
        return self.say(404, {"error": "no such page"}, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def say(self, status: int, found: object, code: str = "", headers: dict[str, str] | None = None) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        error = {"X-Error-Code": code} if code else {}
        for name, value in {"Content-Length": str(len(data)), **error, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repository(self, name: str) -> Repository | None:
        if name not in self.server.repositories:
            self.say(404, {"error": "Repository not found"}, "RepoNotFound")
        return self.server.repositories.get(name)

    def info(self, body: bytes, name: str) -> None:
        if found := self.repository(name):
            siblings = [{"rfilename": file} for file in found.commits[-1].files]
            self.say(200, {"id": name, "private": found.private, "sha": found.commits[-1].oid, "siblings": siblings})

    def refs(self, body: bytes, name: str) -> None:
        if found := self.repository(name):
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in found.tags.items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": found.commits[-1].oid}
            self.say(200, {"branches": [main], "converts": [], "tags": tags})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "team":
            return self.say(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        if name in self.server.repositories:
            return self.say(409, {"error": "You already created this dataset repo"})
        assert asked["type"] == "dataset"
        self.server.repositories[name] = Repository(asked.get("visibility") == "private")
        return self.say(200, {"url": f"{self.server.url}/datasets/{name}"})

    def validate(self, body: bytes) -> None:
        self.say(200, {"warnings": [], "errors": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if found := self.repository(name):
            files = found.at(revision).files
            answers = []
            for path in (file["path"] for file in json.loads(body)["files"]):
                mode = "lfs" if path.endswith((".parquet", ".tar")) else "regular"
                data = files.get(path)
                git = None if data is None else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                oid = git if data is None or mode == "regular" else hashlib.sha256(data).hexdigest()
                answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.say(200, {"files": answers})

    def batch(self, body: bytes, name: str) -> None:
        objects = json.loads(body)["objects"]
        for one in objects:
            if one["oid"] not in self.server.objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}}
        self.say(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        self.server.objects[hashlib.sha256(body).hexdigest()] = body
        self.say(200, {})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if not (found := self.repository(name)):
            return None
        entries = [json.loads(line) for line in body.splitlines()]
        (header,) = (entry["value"] for entry in entries if entry["key"] == "header")
        if header.get("parentCommit", found.commits[-1].oid) != found.commits[-1].oid:
            return self.say(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(found.commits[-1].files)
        for value, key in ((entry["value"], entry["key"]) for entry in entries):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        found.commits.append(Commit(header["summary"], files))
        oid = found.commits[-1].oid
        return self.say(200, {"commitUrl": f"{self.server.url}/datasets/{name}/commit/{oid}", "commitOid": oid})

    def tag(self, body: bytes, name: str, revision: str) -> None:
        if found := self.repository(name):
            asked = json.loads(body)["tag"]
            if asked in found.tags:
                return self.say(409, {"error": "Tag reference exists already"})
            found.tags[asked] = found.at(revision).oid
            self.say(200, {})
        return None

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if not (found := self.repository(name)):
            return None
        commit = found.at(revision)
        if (data := commit.files.get(path)) is None:
            return self.say(404, {"error": "Entry not found"}, "EntryNotFound", {"X-Repo-Commit": commit.oid})
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
            start, end = int(asked[1]), min(int(asked[2]), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self.say(206, data[start : end + 1], headers=headers)
        return self.say(200, data, headers=headers)

    def tree(self, body: bytes, name: str, revision: str) -> None:
        if found := self.repository(name):
            self.say(200, [self.entry(path, data) for path, data in found.at(revision).files.items()])

    def paths(self, body: bytes, name: str, revision: str) -> None:
        if found := self.repository(name):
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            files = found.at(revision).files
            self.say(200, [self.entry(path, files[path]) for path in wanted if path in files])

    @staticmethod
    def entry(path: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    f"GET /api/datasets/{NAME}(?:/revision/[^/]+)?": Handler.info,
    f"GET /api/datasets/{NAME}/refs": Handler.refs,
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.validate,
    f"POST /api/datasets/{NAME}/preupload/(.+)": Handler.preupload,
    f"POST /datasets/{NAME}.git/info/lfs/objects/batch": Handler.batch,
    r"PUT /objects/(\w+)": Handler.put,
    f"POST /api/datasets/{NAME}/commit/(.+)": Handler.commit,
    f"POST /api/datasets/{NAME}/tag/(.+)": Handler.tag,
    f"(?:GET|HEAD) /datasets/{NAME}/resolve/([^/]+)/(.+)": Handler.resolve,
    f"GET /api/datasets/{NAME}/tree/([^/]+)(?:/.*)?": Handler.tree,
    f"POST /api/datasets/{NAME}/paths-info/(.+)": Handler.paths,
}
