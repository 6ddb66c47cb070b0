# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What this machine lets a container do, and the podman settings that follow from it.

Two kinds of machine are known. On one with pure cgroup v2, podman boots systemd by itself. On one with hybrid
cgroups (the v1 controllers at /sys/fs/cgroup, the unified hierarchy below it or nowhere) crun refuses to start and
systemd in a container would not find a hierarchy that it can write to: there the container gets a folder of the
unified hierarchy as its whole /sys/fs/cgroup, and runc starts it. Independently of that, a machine without
CAP_SYS_RESOURCE cannot raise a hard limit, and podman's own defaults do; there the limits are named explicitly.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

CAP_SYS_RESOURCE = 24
# Some ten builds of llama.cpp, compressed.
CCACHE_SIZE = "2G"
RUN = Path("/run/llamafleet")
# For the connection `entered`: the number of each host's first process.
PIDS = RUN / "pids"


class MachineError(Exception):
    """Something that this machine cannot do; the text says what would be right."""


def cache_folder() -> Path:
    """Where what is expensive to make is kept; LLAMAFLEET_CACHE moves it."""
    return Path(os.environ.get("LLAMAFLEET_CACHE") or "/var/cache/llamafleet")


def compiler_cache() -> Path:
    """The folder of ccache that the hosts on this machine share, made where it is missing, its size bounded."""
    folder = cache_folder() / "ccache"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "ccache.conf"
    if not settings.exists():
        settings.write_text(f"max_size = {CCACHE_SIZE}\n", encoding="utf-8")
    return folder


def become_root() -> None:
    """Start again through sudo where the caller is not root: containers with systemd need it here."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if sudo is None:
        raise MachineError(f"{Path(sys.argv[0]).name} needs root: run it as root or install sudo")
    keep = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("LLAMAFLEET_")]
    os.execv(sudo, [sudo, "--", "env", *keep, sys.executable, *sys.argv])


def pure_cgroup_v2(mountinfo: str) -> bool:
    """Say whether /sys/fs/cgroup itself is the unified hierarchy."""
    return any(
        fields[4] == "/sys/fs/cgroup" and fields[fields.index("-") + 1] == "cgroup2"
        for fields in map(str.split, mountinfo.splitlines())
        if "-" in fields
    )


def unified_mount(mountinfo: str) -> Path | None:
    """The first place where the unified hierarchy is mounted from its root, if there is one."""
    for fields in map(str.split, mountinfo.splitlines()):
        if "-" in fields and fields[fields.index("-") + 1] == "cgroup2" and fields[3] == "/":
            return Path(fields[4].replace("\\040", " "))
    return None


def has_capability(status: str, number: int) -> bool:
    """Read one effective capability from the text of /proc/self/status."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> number & 1)
    raise MachineError("/proc/self/status has no line CapEff, so the capabilities of this process are unknown")


def limit(kind: int, ceiling: int) -> str:
    """One present limit as podman writes it, soft:hard, and no higher than what podman itself runs with."""
    soft, hard = (
        ceiling if value == resource.RLIM_INFINITY else min(value, ceiling) for value in resource.getrlimit(kind)
    )
    return f"{soft}:{hard}"


def containers_conf(*, pure_v2: bool, may_raise_limits: bool, pid_max: int) -> str:
    """The text of the containers.conf that this machine needs; empty where podman's defaults are right."""
    lines: list[str] = []
    if not may_raise_limits or not pure_v2:
        lines += ["[containers]"]
    if not may_raise_limits:
        # podman's defaults lie above the present hard limits, and raising one takes CAP_SYS_RESOURCE. Its own
        # processes it first lowers to these ceilings, so that a container cannot be given more.
        files = limit(resource.RLIMIT_NOFILE, 1048576)
        processes = limit(resource.RLIMIT_NPROC, pid_max)
        limits = f'"nofile={files}", "nproc={processes}"'
        lines += [f"default_ulimits = [{limits}]"]
    if not pure_v2:
        lines += [
            'cgroupns = "host"',
            "[engine]",
            'runtime = "runc"',
            'cgroup_manager = "cgroupfs"',
            'events_logger = "file"',
        ]
    return "\n".join(lines) + "\n" if lines else ""


class Machine:
    """This machine, looked at once."""

    def __init__(self) -> None:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        self.pure_v2 = pure_cgroup_v2(mountinfo)
        self.unified = unified_mount(mountinfo)
        self.may_raise_limits = has_capability(Path("/proc/self/status").read_text(encoding="utf-8"), CAP_SYS_RESOURCE)

    def environment(self) -> dict[str, str]:
        """The environment for podman; CONTAINERS_CONF is set only where the defaults would fail."""
        env = dict(os.environ)
        if shutil.which("podman") is None:
            raise MachineError("podman is missing: install the package podman")
        if not self.pure_v2 and shutil.which("runc") is None:
            raise MachineError("this machine has hybrid cgroups, which crun refuses: install runc")
        pid_max = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
        text = containers_conf(pure_v2=self.pure_v2, may_raise_limits=self.may_raise_limits, pid_max=pid_max)
        if text:
            RUN.mkdir(parents=True, exist_ok=True)
            path = RUN / "containers.conf"
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                # Renamed into place: several hosts may be started at the same time.
                new = RUN / f"containers.conf.{os.getpid()}"
                new.write_text(text, encoding="utf-8")
                new.rename(path)
            env["CONTAINERS_CONF"] = str(path)
        return env

    def podman(self, *args: str, check: bool = True, capture: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman; a failure is an error that carries podman's own words."""
        done = subprocess.run(
            ["podman", *args],
            env=self.environment(),
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.PIPE if capture else None,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            said = f": {done.stderr.strip()}" if capture else ""
            raise MachineError(f"podman {' '.join(args[:2])} failed with code {done.returncode}{said}")
        return done
