# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages and scenarios at the same time: lines keep apart, and one Ctrl-C ends all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(__file__).resolve().parents[3] / "bin"
CALL = """
import functools, signal, sys
from support import console

# A shell starts what it puts into the background with SIGINT ignored, and all below it inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No shell: one that is about to fork when the signal comes goes on with the command.
WORK = "import os, sys, time; number = sys.argv[1]; print('begun', number, flush=True); "
WORK += "time.sleep(float(os.environ['SECONDS_EACH'])); print('ended', number)"

def job(name):
    with console.labelled(name):
        for number in (1, 2):
            try:
                console.run([sys.executable, "-c", WORK, str(number)])
            except Exception as error:
                console.say(f"failed {number}")

try:
    console.side_by_side(functools.partial(job, "one"), functools.partial(job, "two"))
except KeyboardInterrupt:
    sys.exit(130)
"""


# The signal comes once the last job is handed over, before anything waits for one.
AT_ONCE = """
from concurrent import futures

class Pool(futures.ThreadPoolExecutor):
    def submit(self, *job):
        begun = super().submit(*job)
        if job[0].args == ("two",):
            while len(console._running) < 2:
                pass
            signal.raise_signal(signal.SIGINT)
        return begun

console.futures.ThreadPoolExecutor = Pool
"""


def start(seconds: float, before: str = "") -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(BIN), "SECONDS_EACH": str(seconds)}
    # In a session of its own, so that the signal reaches this process alone, as that of a CI does.
    return subprocess.Popen(
        [sys.executable, "-c", CALL.replace("\ntry:", f"{before}\ntry:")],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_lines_of_each_begin_with_its_name():
    out, _nothing = start(0.1).communicate(timeout=20)
    lines = out.splitlines()
    for name in ("one", "two"):
        own = [line for line in lines if line.startswith(f"[{name}] ")]
        assert own == [f"[{name}] {word} {number}" for number in (1, 2) for word in ("begun", "ended")]
    assert len(lines) == 8


def test_an_interruption_ends_both_and_nothing_further_begins():
    process = start(60)
    assert process.stdout is not None
    seen = [process.stdout.readline(), process.stdout.readline()]
    assert sorted(seen) == ["[one] begun 1\n", "[two] begun 1\n"]
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _nothing = process.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130
    assert "begun 2" not in out
    assert "ended 1" not in out


def test_an_interruption_while_the_jobs_are_handed_over_ends_them_too():
    begun = time.monotonic()
    process = start(60, AT_ONCE)
    out, _nothing = process.communicate(timeout=20)
    assert time.monotonic() - begun < 15
    assert process.returncode == 130
    assert "ended 1" not in out
