# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reaches a container under test by its namespaces: a module costs one process, as over a kept SSH connection."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = r"""
name: entered
short_description: Enter the namespaces of a container on this machine
description:
  - Runs commands by C(nsenter) and copies files through C(/proc/PID/root), with pipelining. The connection of podman
    starts podman five times for each module, which a bench of the roles would count as theirs.
  - Adds what processor time each command and each copy took to the file that C(ENTERED_USAGE) names.
author:
  - llamafleet contributors (@llamafleet)
extends_documentation_fragment:
  - connection_pipelining
options:
  pid:
    description: First process of the container, as this machine counts it.
    type: int
    required: true
    vars:
      - name: ansible_entered_pid
"""

# Nothing of the caller's environment: a login on the host would not have it either.
ENVIRONMENT = ("env", "--ignore-environment", "HOME=/root", "LC_ALL=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/usr/sbin")


@contextmanager
def counted(kind: str) -> Iterator[None]:
    """Note the processor time of what is done meanwhile, by this process and by those that it has waited for."""

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    before = spent()
    yield
    line = json.dumps({"kind": kind, "seconds": spent() - before}) + "\n"
    # One short write at the end of the file: the forks do not get into each other's lines.
    with Path(os.environ["ENTERED_USAGE"]).open("a", encoding="utf-8") as usage:
        usage.write(line)


class Connection(ConnectionBase):
    transport = "entered"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        enter = ("nsenter", f"--target={self.get_option('pid')}", "--all", "--wd=/")
        with counted("command"):
            argv = [*enter, *ENVIRONMENT, "/bin/sh", "-c", cmd]
            done = subprocess.run(argv, input=in_data or b"", capture_output=True, check=False)
        if done.stderr.startswith(b"nsenter: "):
            raise AnsibleConnectionFailure(done.stderr.decode("utf-8", "replace").strip())
        return done.returncode, done.stdout, done.stderr

    def _inside(self, path: str) -> Path:
        return Path(f"/proc/{self.get_option('pid')}/root") / path.lstrip("/")

    def _copy(self, origin: str | Path, target: str | Path) -> None:
        try:
            with counted("copy"):
                shutil.copyfile(origin, target)
        except OSError as exc:
            raise AnsibleError(f"{origin} cannot be copied to {target}: {exc.strerror}") from exc

    def put_file(self, in_path: str, out_path: str) -> Any:
        super().put_file(in_path, out_path)
        self._copy(in_path, self._inside(out_path))

    def fetch_file(self, in_path: str, out_path: str) -> Any:
        super().fetch_file(in_path, out_path)
        self._copy(self._inside(in_path), out_path)

    def close(self) -> None:
        self._connected = False
