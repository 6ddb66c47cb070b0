# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reaches a container under test by its namespaces: a module costs one process, as over a kept SSH connection."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = r"""
name: entered
short_description: Enter the namespaces of a container on this machine
description:
  - Runs commands and copies files by C(nsenter), with pipelining. The connection of podman starts podman five times for
    each module, which is most of the time of a play with many short tasks.
  - Where the environment names a file in C(ENTERED_USAGE), the processor time of each command and of each copy is added
    to it.
author:
  - llamafleet contributors (@llamafleet)
extends_documentation_fragment:
  - connection_pipelining
options:
  remote_addr:
    description: Name of a host that C(tests/host/host) has booted.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
"""

# Where tests/host/host lets podman keep the number of each host's first process, which is another after a reboot.
PIDS = Path("/run/llamafleet/pids")
# Nothing of the caller's environment: a login on the host would not have it either.
ENVIRONMENT = (
    "/usr/bin/env",
    "--ignore-environment",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "PATH=/usr/local/bin:/usr/bin:/usr/sbin",
)
# A number that is left of a host that is gone may be another process's by now, and that one this machine's own: nothing
# is done there that was meant for a host under test.
ARRIVED = (
    'read -r host < /proc/sys/kernel/hostname; [ "$host" = "$0" ] && exec "$@"; '
    'echo "entered: this is $host and not the host $0" >&2; exit 125'
)


@contextmanager
def counted(kind: str) -> Iterator[None]:
    """Note the processor time of what is done meanwhile, by this process and by those that it has waited for."""

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    before = spent()
    yield
    if usage := os.environ.get("ENTERED_USAGE"):
        line = json.dumps({"kind": kind, "seconds": spent() - before}) + "\n"
        # One short write at the end of the file: the forks do not get into each other's lines.
        with Path(usage).open("a", encoding="utf-8") as notes:
            notes.write(line)


class Connection(ConnectionBase):
    transport = "entered"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def _enter(self, argv: Sequence[str], **streams: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a command on the host, with nothing of this process's environment."""
        name = str(self.get_option("remote_addr"))
        try:
            pid = int((PIDS / name).read_text(encoding="ascii"))
        except (OSError, ValueError) as exc:
            raise AnsibleConnectionFailure(f"{name} is no host of tests/host/host that runs: {exc}") from exc
        # As tests/host/podman does where the caller is not root.
        root = () if os.geteuid() == 0 else ("sudo", "--non-interactive", "--")
        # Without a directory of its own it is that of the first process, as the host sees it.
        enter = (*root, "nsenter", f"--target={pid}", "--all", "--wd")
        command = [*enter, "/bin/sh", "-c", ARRIVED, name, *ENVIRONMENT, *argv]
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False, **streams)
        if done.stderr.startswith((b"nsenter: ", b"entered: ")):
            raise AnsibleConnectionFailure(f"{name}: {done.stderr.decode('utf-8', 'replace').strip()}")
        return done

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        with counted("command"):
            done = self._enter(("/bin/sh", "-c", cmd), input=in_data or b"", stdout=subprocess.PIPE)
        return done.returncode, done.stdout, done.stderr

    def _copy(self, argv: Sequence[str], origin: str, target: str, **streams: IO[bytes] | int) -> None:
        with counted("copy"):
            done = self._enter(argv, **streams)
        if done.returncode:
            raise AnsibleError(f"{origin} cannot be copied to {target}: {done.stderr.decode('utf-8', 'replace')}")

    def put_file(self, in_path: str, out_path: str) -> Any:
        super().put_file(in_path, out_path)
        with Path(in_path).open("rb") as origin:
            write = ("/bin/sh", "-c", 'exec cat > "$1"', "sh", out_path)
            self._copy(write, in_path, out_path, stdin=origin, stdout=subprocess.DEVNULL)

    def fetch_file(self, in_path: str, out_path: str) -> Any:
        super().fetch_file(in_path, out_path)
        with Path(out_path).open("wb") as target:
            self._copy(("cat", "--", in_path), in_path, out_path, stdin=subprocess.DEVNULL, stdout=target)

    def reset(self) -> None:
        """Nothing is kept between two commands."""

    def close(self) -> None:
        self._connected = False
