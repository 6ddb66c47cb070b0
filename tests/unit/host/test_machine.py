# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What tests/host makes of a machine: its cgroups, its limits, and the settings for podman that follow."""

from __future__ import annotations

import importlib.util
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HOST = Path(__file__).resolve().parents[2] / "host"
spec = importlib.util.spec_from_file_location("llamafleet_test_machine", HOST / "machine.py")
machine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(machine)

PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "30 23 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs ro,mode=755\n"
    "31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n"
    "32 30 0:28 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory\n"
)
V1 = HYBRID.splitlines(keepends=True)[0] + HYBRID.splitlines(keepends=True)[2]


@pytest.mark.parametrize(
    ("mountinfo", "pure", "unified"),
    [(PURE, True, "/sys/fs/cgroup"), (HYBRID, False, "/sys/fs/cgroup/unified"), (V1, False, None)],
)
def test_cgroups(mountinfo, pure, unified):
    assert machine.pure_cgroup_v2(mountinfo) is pure
    assert machine.unified_mount(mountinfo) == (Path(unified) if unified else None)


def test_a_part_of_the_unified_hierarchy_is_not_the_hierarchy():
    # A container's own view: the mount's root is not the hierarchy's.
    assert machine.unified_mount(PURE.replace(" / /sys", " /machine /sys")) is None


@pytest.mark.parametrize(("mask", "there"), [("000001fffeffffff", False), ("000001ffffffffff", True)])
def test_capability(mask, there):
    assert machine.has_capability(f"Name:\tx\nCapEff:\t{mask}\n", machine.CAP_SYS_RESOURCE) is there


def test_capability_of_a_text_without_it():
    with pytest.raises(machine.MachineError, match="CapEff"):
        machine.has_capability("Name:\tx\n", machine.CAP_SYS_RESOURCE)


def test_the_compiler_cache_lies_with_the_other_caches_and_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAFLEET_CACHE", str(tmp_path))
    folder = machine.compiler_cache()
    assert folder == tmp_path / "ccache"
    settings = folder / "ccache.conf"
    assert settings.read_text(encoding="utf-8") == "max_size = 2G\n"
    # Who wants another size keeps it.
    settings.write_text("max_size = 9G\n", encoding="utf-8")
    assert machine.compiler_cache() == folder
    assert settings.read_text(encoding="utf-8") == "max_size = 9G\n"


def test_ordinary_machine_needs_no_settings():
    assert machine.containers_conf(pure_v2=True, may_raise_limits=True, pid_max=4194304) == ""


def test_limits_are_no_higher_than_podman_runs_with(monkeypatch):
    limits = {
        resource.RLIMIT_NOFILE: (1024, resource.RLIM_INFINITY),
        resource.RLIMIT_NPROC: (resource.RLIM_INFINITY, 96365),
    }
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    text = machine.containers_conf(pure_v2=True, may_raise_limits=False, pid_max=32768)
    assert text == '[containers]\ndefault_ulimits = ["nofile=1024:1048576", "nproc=32768:32768"]\n'


def test_hybrid_machine_takes_runc_and_the_hosts_cgroups():
    text = machine.containers_conf(pure_v2=False, may_raise_limits=True, pid_max=32768)
    assert "ulimits" not in text
    assert text.splitlines() == [
        "[containers]",
        'cgroupns = "host"',
        "[engine]",
        'runtime = "runc"',
        'cgroup_manager = "cgroupfs"',
        'events_logger = "file"',
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up"], "up needs the name of a host"),
        (["down"], "down needs names of hosts"),
        (["down", "a", "--all"], "down needs names of hosts"),
        (["up", "a", "--release", "42"], "invalid choice: '42'"),
        (["sideways"], "invalid choice: 'sideways'"),
    ],
)
def test_host_refuses(arguments, message):
    done = subprocess.run([sys.executable, str(HOST / "host"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_masked_units_are_names_of_units():
    rows = [row for row in (HOST / "masked-units").read_text(encoding="utf-8").splitlines() if not row.startswith("#")]
    assert rows
    assert all(re.fullmatch(r"[a-z0-9@-]+\.(service|timer|socket)", row) for row in rows)
