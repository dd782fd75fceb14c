"""A file server that misbehaves on request."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server(ThreadingHTTPServer):
    """Serves `files`, path -> content; keeps a list of the requests that it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.failures: dict[str, list[int]] = {}  # path -> codes to answer first
        self.cut_after: int | None = None  # bytes of a body, then the connection ends

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def tag(self, path: str) -> str:
        return hashlib.sha256(self.files[path]).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        server, path = self.server, self.path.partition("?")[0]
        range_ = self.headers.get("Range")
        server.requests.append((self.command, path, range_))
        if codes := server.failures.get(path):
            self._refuse(codes.pop(0))
            return
        if path not in server.files:
            self._refuse(404)
            return
        content, tag = server.files[path], f'"{server.tag(path)}"'
        start = 0
        if range_:
            start = int(range_.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return
        content = content[start:]
        if server.cut_after is not None and len(content) > server.cut_after:
            self.wfile.write(content[: server.cut_after])
            self.close_connection = True
            return
        self.wfile.write(content)

    def _refuse(self, code: int) -> None:
        self.send_response(code)
        if code == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
