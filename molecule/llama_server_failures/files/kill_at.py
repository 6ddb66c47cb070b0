# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill the module llama_instances at a phase of its work on the instance chat: kill_at.py PHASE [wait].

trial: the trial's unit is there; written: the new unit is in place; started: its process runs and is being gated;
reverting: the old unit is back in place. Prints the phase and the number of processes that were killed; with wait it
only waits for the phase.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")
UNIT = UNITS / "llama-server@chat.service"


def modules() -> list[int]:
    """The module's own processes, found by the name that Ansible gives them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"AnsiballZ_llama_instances" in word for word in words[:3]):
            found.append(int(process.name))
    return found


def pid_of() -> str:
    shown = subprocess.run(
        ["systemctl", "show", "--value", "--property=MainPID", UNIT.name], stdout=subprocess.PIPE, text=True, check=True
    )
    return shown.stdout.strip()


def until(reached, phase: str) -> None:
    end = time.monotonic() + 120
    while not reached():
        if time.monotonic() > end:
            sys.exit(f"{phase} was not reached")
        time.sleep(0.005)


def main() -> None:
    """Wait for the phase, at most two minutes, and kill."""
    phase = sys.argv[1]
    unit, pid = UNIT.read_bytes(), pid_of()
    until(modules, "the module")
    if phase == "trial":
        until((UNITS / "llama-server@chat.trial.service").exists, phase)
    else:
        until(lambda: UNIT.read_bytes() != unit, "written")
    if phase == "started":
        until(lambda: pid_of() not in ("0", pid), phase)
    if phase == "reverting":
        until(lambda: UNIT.read_bytes() == unit, phase)
    victims = modules()
    if sys.argv[2:] != ["wait"]:
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
    print(phase, len(victims))


if __name__ == "__main__":
    main()
