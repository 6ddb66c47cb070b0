# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a run on the controller, and kill it there with all that belongs to it: kill_run.py PODMAN HOST COMMAND...

It is killed when the module has written the new unit of `chat`. Prints the number of processes that were killed.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def family(root: int) -> list[int]:
    """The process and its descendants; Ansible's workers have sessions of their own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def main() -> None:
    """Start, wait for the phase, kill."""
    podman, host, *command = sys.argv[1:]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr) as run:
        waiting = [podman, "exec", host, "/usr/bin/python3", "/opt/kill_at.py", "written", "wait"]
        subprocess.run(waiting, stdout=sys.stderr, check=True)
        victims = family(run.pid)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
    print(len(victims))


if __name__ == "__main__":
    main()
