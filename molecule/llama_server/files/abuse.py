# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What strangers send: abuse.py PORT KEY_FILE. Prints what each got, as JSON; no request may take longer than LIMIT."""

import concurrent.futures
import http.client
import json
import socket
import sys
import time
from pathlib import Path

LIMIT = 60
CHAT = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}).encode()


def post(port: int, body: bytes, key: str | None) -> int:
    """The status of the answer; 0 when the connection was closed instead."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def slow(port: int, key: str) -> float:
    """Seconds until somebody who sends one byte a second of a large body is cut off, at most 15."""
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Length: 100000"]
    head = "\r\n".join([*lines, "", ""])
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.sendall(head.encode())
        # Others are served meanwhile.
        while time.monotonic() - started < 15:
            try:
                connection.sendall(b" ")
            except OSError:
                break
            time.sleep(1)
    return time.monotonic() - started


def main() -> None:
    """Try all, then see that the server answers as before."""
    port, key = int(sys.argv[1]), Path(sys.argv[2]).read_text().split()[0]
    seen: dict[str, object] = {
        "none": post(port, CHAT, None),
        "wrong": post(port, CHAT, "wrong-key"),
        "junk": post(port, b"\x00\xff{[" * 2_621_440, key),
        "junk_without_key": post(port, b"\x00\xff{[" * 2_621_440, None),
        "nested": post(port, b"[" * 100_000, key),
    }
    with concurrent.futures.ThreadPoolExecutor(max_workers=65) as pool:
        lame = pool.submit(slow, port, key)
        seen["many"] = sorted(set(pool.map(lambda _n: post(port, CHAT, key), range(64))))
        seen["slow_seconds"] = round(lame.result(), 1)
    seen["after"] = post(port, CHAT, key)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
