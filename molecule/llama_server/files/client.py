# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that asks without a pause and says afterwards for how long nobody answered.

client.py PORT KEY_FILE REPORT; SIGTERM ends it and writes the report: requests, failed, wrong and outage_ms, the
longest time from the end of a good answer to the start of the request that brought the next one, with a failure
between them.
"""

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

BODY = json.dumps({"prompt": "The capital of France is", "n_predict": 4, "temperature": 0, "cache_prompt": False})


class Stop(Exception):
    """The report is wanted."""


def stop(_number: int, _frame: object) -> None:
    raise Stop


def ask(port: int, key: str) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", BODY.encode(), {"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["content"])


def main() -> None:
    """Ask until stopped."""
    port, key = int(sys.argv[1]), Path(sys.argv[2]).read_text().split()[0]
    report = {"requests": 0, "failed": 0, "wrong": 0, "outage_ms": 0, "last": ""}
    good = time.monotonic()
    failing = False
    signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            asked = time.monotonic()
            try:
                text = ask(port, key)
            except (OSError, ValueError, KeyError) as error:
                report["failed"] += 1
                report["last"] = str(error)
                failing = True
                time.sleep(0.01)
                continue
            report["requests"] += 1
            # Of a real model at temperature 0, and of nothing else.
            report["wrong"] += "Paris" not in text
            if failing:
                report["outage_ms"] = max(report["outage_ms"], round(1000 * (asked - good)))
                failing = False
            good = time.monotonic()
            time.sleep(0.02)
    except Stop:
        if failing:
            report["outage_ms"] = max(report["outage_ms"], round(1000 * (time.monotonic() - good)))
    Path(sys.argv[3]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
