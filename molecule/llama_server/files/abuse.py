# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What strangers send: abuse.py PORT KEY_FILE. Prints what each got, as JSON; no request may take longer than LIMIT."""

import concurrent.futures
import http.client
import json
import socket
import sys
import threading
import time
from pathlib import Path

LIMIT = 180
# Two tokens of prompt and one of answer: what is tried is the server, not the model.
ASK = json.dumps({"prompt": "Hello", "n_predict": 1}).encode()
JUNK = b"\x00\xff{[" * 2_621_440


def post(port: int, body: bytes, key: str | None) -> int:
    """The status of the answer; 0 when the connection was closed instead."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request("POST", "/completion", body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def slow(port: int, key: str, done: threading.Event) -> int:
    """Send a body that never ends, byte by byte, while others are served; the bytes that were taken."""
    lines = ["POST /completion HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Length: 100000"]
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        while not done.wait(0.2):
            try:
                connection.sendall(b" ")
            except OSError:
                break
            sent += 1
    return sent


def main() -> None:
    """Try all, then see that the server answers as before."""
    port, key = int(sys.argv[1]), Path(sys.argv[2]).read_text().split()[0]
    seen: dict[str, object] = {
        "none": post(port, ASK, None),
        "wrong": post(port, ASK, "wrong-key"),
        "junk": post(port, JUNK, key),
        "junk_without_key": post(port, JUNK, None),
        "nested": post(port, b"[" * 100_000, key),
    }
    done = threading.Event()
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(max_workers=65) as pool:
        lame = pool.submit(slow, port, key, done)
        # The first byte of it is there before the others come.
        time.sleep(0.5)
        seen["many"] = sorted(set(pool.map(lambda _n: post(port, ASK, key), range(64))))
        seen["many_seconds"] = round(time.monotonic() - started, 1)
        done.set()
        seen["slow_bytes"] = lame.result()
    seen["after"] = post(port, ASK, key)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
