# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file server on the loopback interface that answers ranges, or misbehaves in a way that a test names."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    path: str
    host: str
    range: str | None
    authorization: str | None


class FileServer(ThreadingHTTPServer):
    """C{files} by path; C{redirects} by path to a location; C{behaviour} names what is done differently."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.behaviour = ""
        self.token: str | None = None
        self.requests: list[Request] = []
        self.sent_bytes = 0
        self.lock = threading.Lock()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that close early are what the tests are about; the tests look at what was sent."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server = self.server
        path = self.path.partition("?")[0]
        with server.lock:
            server.requests.append(
                Request(self.path, self.headers["Host"], self.headers.get("Range"), self.headers.get("Authorization"))
            )
            number = len(server.requests)
        if path in server.redirects:
            return self._answer(302, b"", {"Location": server.redirects[path], **server.headers})
        if server.token is not None and self.headers.get("Authorization") != f"Bearer {server.token}":
            return self._answer(401, b"", {})
        if path not in server.files:
            return self._answer(404, b"no such file", {})
        data = server.files[path]
        if server.behaviour == "changes" and number > 1:
            data += b"more"
        if server.behaviour == "new etag":
            server.headers["ETag"] = f'"{number}"'
        if server.behaviour == "expires" and number == 3:
            return self._answer(403, b"expired", {})
        if server.behaviour == "error":
            return self._answer(503, b"secret-body", {})
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None or server.behaviour in ("no ranges", "no ranges, no length"):
            return self._answer(200, data, server.headers, with_length=server.behaviour != "no ranges, no length")
        start, end = int(match[1]), min(int(match[2]), len(data) - 1)
        if start >= len(data):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        total = "*" if server.behaviour == "no total" else str(len(data))
        if server.behaviour == "wrong start" and start:
            start -= 1
        headers = {"Content-Range": f"bytes {start}-{end}/{total}", **server.headers}
        body = data[start : end + 1]
        if server.behaviour == "cut short" and number > 1:
            return self._answer(206, body, headers, cut=100)
        return self._answer(206, body, headers)

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str], with_length: bool = True, cut: int = 0
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if with_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        self.end_headers()
        view = memoryview(body)[: len(body) - cut]
        while view:
            self.wfile.write(view[:65536])
            with self.server.lock:
                self.server.sent_bytes += len(view[:65536])
            view = view[65536:]
        if cut:
            self.close_connection = True


@contextmanager
def serving() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
