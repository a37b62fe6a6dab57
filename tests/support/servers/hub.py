"""A hub of models on loopback: the part of the Hugging Face hub's API that its library uses to fetch files."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".bin")


class HubServer(ThreadingHTTPServer):
    """Serves one model, each of its states under a commit."""

    daemon_threads = True

    def __init__(self, model: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.ranges = True  # whether a part of a file may be asked for
        self.read: Counter[str] = Counter()  # bytes that were sent of each file
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main = ""
        self.commit(folder)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, folder: Path) -> str:
        """Make the folder's contents the newest commit."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        state = hashlib.sha1(b"".join(files.values()), usedforsecurity=False)
        self.main = state.hexdigest()
        self.commits[self.main] = files
        return self.main

    def resolve(self, revision: str) -> str | None:
        """The commit of a revision."""
        commit = self.main if revision == "main" else revision
        return commit if commit in self.commits else None


@contextmanager
def hub_server(model: str, folder: Path) -> Iterator[HubServer]:
    """A hub with the folder's contents as the model, until the end of the block."""
    with HubServer(model, folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.0"  # no connection outlives the server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = f"/api/models/{self.server.model}"
        if path == api or path.startswith(f"{api}/revision/"):
            self._info(path.removeprefix(api).removeprefix("/revision/") or "main")
        elif path.startswith(f"{api}/tree/"):
            self._tree(path.removeprefix(f"{api}/tree/").strip("/"))
        elif path.startswith(f"/{self.server.model}/resolve/"):
            self._file(path.removeprefix(f"/{self.server.model}/resolve/"))
        else:
            self._refuse("RepoNotFound")

    do_HEAD = do_GET

    def _info(self, revision: str) -> None:
        commit = self.server.resolve(revision)
        if commit is None:
            return self._refuse("RevisionNotFound")
        files = [{"rfilename": name} for name in self.server.commits[commit]]
        self._json({"id": self.server.model, "modelId": self.server.model, "sha": commit, "siblings": files})

    def _tree(self, revision: str) -> None:
        commit = self.server.resolve(revision)
        if commit is None:
            return self._refuse("RevisionNotFound")
        self._json([_tree_entry(name, data) for name, data in self.server.commits[commit].items()])

    def _file(self, path: str) -> None:
        revision, _, name = path.partition("/")
        commit = self.server.resolve(revision)
        data = self.server.commits[commit].get(name) if commit else None
        if commit is None or data is None:
            return self._refuse("EntryNotFound")
        start, end = 0, len(data)
        wanted = self.headers.get("Range") if self.server.ranges else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first or 0), min(end, int(last) + 1 if last else end)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{_etag(name, data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self.server.read[name] += end - start
            self.wfile.write(data[start:end])

    def _json(self, tree: object) -> None:
        data = json.dumps(tree).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "not found")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(name: str, data: bytes) -> str:
    if name.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _tree_entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _etag(name, data)}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": _etag(name, data), "size": len(data), "pointerSize": 130}
    return entry
