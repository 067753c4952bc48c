"""A small stand-in for the Hugging Face hub: what `huggingface_hub` asks for, from a folder on this disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL, GATED, PRIVATE, DOWN = "org/tiny", "org/gated", "org/private", "org/down"
"""What the hub offers: a model, one behind a licence, one that this token may not read, one at a bad time."""


@dataclass
class Hub:
    """A running server and what it was asked for."""

    files: dict[str, bytes]
    url: str = ""
    cut_after: int | None = None
    """Bytes after which the connection breaks the first time that weights are fetched."""
    fetched: list[str] = field(default_factory=list)
    """Names of files that were sent, with the range if only a part was asked for."""

    def variables(self, home: Path, **changes: str) -> dict[str, str]:
        """Environment of a command that is to ask this hub."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""} | changes


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub whose models all have these files."""
    hub = Hub(files)

    class Handler(_HubHandler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _HubHandler(BaseHTTPRequestHandler):
    """`/api/models/ID/revision/REVISION`, `/api/models/ID/tree/COMMIT` and `/ID/resolve/COMMIT/FILE`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        if len(parts) < 5:
            self.refuse(404, "")
            return
        organisation, model, action, revision, *file = parts[2:] if is_api else parts
        name = f"{organisation}/{model}"
        if name == DOWN:
            self.refuse(503, "")
        elif name == PRIVATE:
            self.refuse(403, "")
        elif name not in (MODEL, GATED):
            self.refuse(401, "RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif is_api and action == "revision":
            self.send_json({"id": name, "sha": COMMIT, "siblings": [], "tags": []})
        elif is_api:
            self.send_json([entry(file, content) for file, content in self.hub.files.items()])
        elif name == GATED:
            self.refuse(401, "GatedRepo")
        else:
            self.send_file("/".join(file))

    def send_file(self, file: str) -> None:
        content = self.hub.files[file]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.fetched.append(f"{file} from {start}" if start else file)
        if self.hub.cut_after is not None and file.endswith(".safetensors"):
            content, self.hub.cut_after = content[: self.hub.cut_after], None
            self.close_connection = True
        self.wfile.write(content[start:])

    def send_json(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def entry(file: str, content: bytes) -> dict[str, object]:
    """A file in the hub's list of a repository."""
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
