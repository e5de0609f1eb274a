"""A stand-in of the Hugging Face hub on the loopback: what huggingface_hub asks of it to push and to fetch files."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """files: (repository, path) -> content. asked: the paths of all requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked = {}, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository):
        held = sorted((path, content) for (name, path), content in self.files.items() if name == repository)
        return hashlib.sha1(repr(held).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        self._file()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(part for part in (given.get("organization"), given["name"]) if part)
            return self._json({"url": f"{self.server.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        repository = self.path.partition("/api/models/")[2].partition("/commit/")[0]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                held = line["value"]
                self.server.files[repository, held["path"]] = base64.b64decode(held["content"])
        commit = self.server.commit(repository)
        return self._json({"commitUrl": f"{self.server.address}/{repository}/commit/{commit}", "commitOid": commit})

    def _json(self, content):
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self):
        self.server.asked.append(self.path)
        repository, resolved, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, path = rest.partition("/")
        known = {name for name, _ in self.server.files}
        commit = self.server.commit(repository)
        if not resolved or repository not in known:
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", commit):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        content = self.server.files.get((repository, path))
        if content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        tag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'})

    def _answer(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
