# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that asks without a pause and says afterwards for how long nobody answered.

client.py PORT KEY_FILE REPORT; after the first answer REPORT.begun is there. SIGTERM lets it ask once more and write
the report: answered, failed, wrong, served (whether the last request was answered) and outage_ms, the longest time from
the end of a good answer to the start of the request that brought the next one, with a failure between them.
"""

import json
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path

# Of a real model at temperature 0 the same answer every time.
BODY = json.dumps({"prompt": "The capital of France is", "n_predict": 4, "temperature": 0, "cache_prompt": False})


def ask(port: int, key: str) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", BODY.encode(), {"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["content"])


def main() -> None:
    """Ask until stopped."""
    port, key = int(sys.argv[1]), Path(sys.argv[2]).read_text().split()[0]
    report: dict[str, object] = {}
    answered = failed = wrong = outage = 0
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_signal: stopped.set())
    good = time.monotonic()
    failing = last = False
    while not last:
        # Decided before it asks: the last request begins when all is over.
        last = stopped.is_set()
        asked = time.monotonic()
        try:
            text = ask(port, key)
        except (OSError, ValueError, KeyError) as error:
            failed += 1
            report["said"] = str(error)
            failing = True
            time.sleep(0.01)
            continue
        answered += 1
        if answered == 1:
            Path(f"{sys.argv[3]}.begun").touch()
        wrong += "Paris" not in text
        if failing:
            outage = max(outage, round(1000 * (asked - good)))
            failing = False
        good = time.monotonic()
        time.sleep(0.02)
    report |= {"answered": answered, "failed": failed, "wrong": wrong, "outage_ms": outage, "served": not failing}
    Path(sys.argv[3]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
