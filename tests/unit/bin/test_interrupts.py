# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C while bin/demo runs a package manager: fetching stops at once, installing is finished first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(__file__).resolve().parents[3] / "bin"

# An apt-get that takes two seconds for each step and notes what it has finished, and the dpkg beside it.
APT = """#!/bin/sh
echo "begun $*" >> "$STATE/log"
case "$*" in
  *--download-only*|update) sleep "${FETCH:-0}";;
  *) touch "$STATE/half"; sleep "${INSTALL:-0}"; rm "$STATE/half"; echo podman > "$STATE/installed";;
esac
echo "ended $*" >> "$STATE/log"
"""
DPKG = """#!/bin/sh
echo "dpkg $*" >> "$STATE/log"
"""
QUERY = """#!/bin/sh
echo "installed base"
[ -e "$STATE/installed" ] && echo "installed podman"
exit 0
"""
CALL = """
import sys
from support import console, machine
machine._NEEDED = {"apt-get": {"/nowhere/podman": "podman"}}
machine._has_venv = lambda: True
try:
    machine.install_packages()
except KeyboardInterrupt:
    sys.exit(130)
"""


class Machine:
    """A machine whose package manager is slow, and calls of install_packages on it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.cache = folder / "cache"
        programs = folder / "programs"
        for path in (self.state, self.cache, programs):
            path.mkdir()
        for name, text in {"apt-get": APT, "dpkg": DPKG, "dpkg-query": QUERY}.items():
            (programs / name).write_text(text, encoding="utf-8")
            (programs / name).chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(BIN),
            "STATE": str(self.state),
            "LLAMAFLEET_CACHE": str(self.cache),
        }

    def begin(self, **slow: str) -> subprocess.Popen[str]:
        # In a process group of its own, as a terminal gives it; the interrupt goes to all of it.
        return subprocess.Popen(
            [sys.executable, "-c", CALL],
            env={**self.env, **slow},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Where the tests run in the background, SIGINT is ignored, and a child would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def log(self) -> list[str]:
        path = self.state / "log"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 20
        while not any(words in line for line in self.log()):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def noted(machine: Machine) -> list[str]:
    return json.loads((machine.cache / "installed-packages.json").read_text(encoding="utf-8"))["packages"]


def test_interrupted_while_it_fetches_stops_at_once(machine):
    process = machine.begin(FETCH="30")
    machine.wait_for("begun update")
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 130
    assert time.monotonic() - begun < 15
    assert not any("ended" in line for line in machine.log())


def test_interrupted_while_it_installs_ends_after_the_installation(machine):
    process = machine.begin(INSTALL="2")
    machine.wait_for("begun install --yes --no-install-recommends podman")
    while not (machine.state / "half").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert not (machine.state / "half").exists()
    assert machine.log()[-1] == "ended install --yes --no-install-recommends podman"
    assert "cut off here it would leave the machine half changed" in said
    assert noted(machine) == ["podman"]


def test_killed_while_it_installs_is_finished_by_the_next_call(machine):
    process = machine.begin(INSTALL="60")
    while not (machine.state / "half").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait(20)
    subprocess.run(["pkill", "--full", str(machine.state.parent / "programs")], check=False)
    assert machine.begin().wait(20) == 0
    resumed = machine.log().index("dpkg --configure -a")
    assert machine.log()[resumed + 1] == "begun install --yes --no-install-recommends --fix-broken"
    assert noted(machine) == ["podman"]
