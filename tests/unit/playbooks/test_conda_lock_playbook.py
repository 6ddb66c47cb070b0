# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""conda_lock.yml as a whole, with a real solver (tests/conda/micromamba) on a real channel that is made here.

The hosts are this machine under several names, told to be Fedora on the two architectures.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _conda_lock, _toolchain

ROOT = Path(__file__).parents[3]
STAND_IN = ROOT / "tests" / "conda"
X86, ARM = "conda-linux-64-cuda13.0.txt", "conda-linux-aarch64-cuda13.0.txt"
# What each host says that the others do not. Another GPU, or another method, makes another kind of host, which builds
# for itself: the first speaks for none of the others.
HOSTS: dict[str, dict] = {
    "plain": {"toolchain_method": "packages"},
    "ada": {},
    "ada-two": {"llama_build_cuda_architectures": ["86"]},
    "spark": {"llama_build_cuda_architectures": ["121"]},
}


def conda_of(machine: str) -> dict:
    return _toolchain.toolchain_plan(44, "cuda", method="conda", machine=machine, gpu_targets=["8.9"])["conda"]


def packages() -> list[dict]:
    """Return what the channel has: all that the plans name, what that needs, and wrong choices beside it."""
    found: list[dict] = [{"name": "tzdata", "version": "2026.1"}]
    for platform, conda in ((conda_of(machine)["platform"], conda_of(machine)) for machine in ("x86_64", "aarch64")):
        for spec in conda["specs"]:
            name, version, build = [*spec.split("="), "", ""][:3]
            if name == "cuda-version":
                # What the real one says of the driver.
                more = {"depends": ["tzdata"], "constrains": [f"__cuda >={version.partition('.')[0]}"]}
            else:
                more = {"depends": ["tzdata"]}
            version = version if version not in ("", "*") else "1.0"
            found.append({"name": name, "version": version, "build": build or "h0_0", "subdir": platform, **more})
        found.append({"name": "cuda-version", "version": "13.4", "subdir": platform})
        found.append({"name": "cmake", "version": "9.0", "subdir": platform, "depends": ["__glibc >=2.99"]})
    return [*found, {"name": "arm-variant", "version": "1.5", "build": "tegra", "subdir": "linux-aarch64"}]


class Site:
    """An inventory, a channel that is served, and the playbook."""

    def __init__(self, folder: Path, address: str, hosts: dict[str, dict]) -> None:
        self.folder, self.channel, self.address = folder, folder / "channel", address
        self.inventory = folder / "inventory"
        self.inventory.mkdir()
        program = folder / "micromamba"
        text = (STAND_IN / "micromamba").read_text(encoding="utf-8")
        program.write_text(text.replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1), encoding="utf-8")
        settings = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "toolchain_method": "conda",
            "toolchain_backend": "cuda",
            "toolchain_conda_channel": address,
            "toolchain_conda_micromamba_url": f"file://{program}",
            "toolchain_conda_micromamba_sha256": hashlib.sha256(program.read_bytes()).hexdigest(),
            "llama_build_backends": ["cuda"],
            "llama_build_cuda_architectures": ["89"],
            "folder": str(folder),
            "address": address,
        }
        inventory = {"all": {"children": {"servers": {"hosts": hosts}}, "vars": settings}}
        (self.inventory / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
        told = {
            "architecture": "{{ 'aarch64' if inventory_hostname == 'spark' else 'x86_64' }}",
            "distribution": "{{ told_distribution | default('Fedora') }}",
            "distribution_version": "{{ told_version | default('44') }}",
            "distribution_major_version": "{{ told_version | default('44') | split('.') | first }}",
        }
        play = {
            "hosts": "servers",
            "gather_facts": False,
            "tasks": [{"ansible.builtin.set_fact": {**told, "cacheable": True}}],
        }
        playbook = [play, {"ansible.builtin.import_playbook": str(ROOT / "playbooks/conda_lock.yml")}]
        (folder / "play.json").write_text(json.dumps(playbook), encoding="utf-8")

    def offer(self, described: list[dict]) -> None:
        description = self.folder / "packages.json"
        description.write_text(json.dumps(described), encoding="utf-8")
        subprocess.run([sys.executable, STAND_IN / "make_channel.py", self.channel, description], check=True)

    def play(self, *words: str, status: int = 0) -> str:
        """Run the playbook and return what it says; nothing of a search is left."""
        argv = [sys.executable, "-m", "ansible", "playbook", "--diff", "-i", self.inventory, self.folder / "play.json"]
        env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "1000"}
        before = {*Path("/var/tmp").glob("llamafleet-lock-*")}
        done = subprocess.run([*argv, *words], cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        assert {*Path("/var/tmp").glob("llamafleet-lock-*")} <= before
        return said

    def lock(self, name: str) -> str:
        return (self.inventory / name).read_text(encoding="utf-8")

    def locks(self) -> list[str]:
        return sorted(path.name for path in self.inventory.iterdir() if path.name != "hosts.json")


def changed(said: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", said, re.MULTILINE)}


NONE = dict.fromkeys(HOSTS, 0)


@pytest.fixture
def made(tmp_path):
    """Return what makes a site of some hosts, with a channel that is served."""
    (tmp_path / "channel").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "channel")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield functools.partial(Site, tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


def test_one_run_locks_each_kind_and_a_second_changes_nothing(made):
    site = made(HOSTS)
    site.offer(packages())
    said = site.play("--check")
    assert changed(said) == {**NONE, "ada": 1, "spark": 1}
    assert "+@EXPLICIT" in said
    assert site.locks() == []

    # Two builders of the same toolchain have one lock, and a host of the method packages has none.
    assert changed(site.play()) == {**NONE, "ada": 1, "spark": 1}
    assert site.locks() == [X86, ARM]
    for name, machine in ((X86, "x86_64"), (ARM, "aarch64")):
        lines = site.lock(name).splitlines()
        assert _conda_lock.conda_lock_problems(lines, conda_of(machine)) == []
        entries = lines[lines.index("@EXPLICIT") + 1 :]
        assert all(re.fullmatch(rf"{site.address}/\S+#sha256:[0-9a-f]{{64}}", line) for line in entries)
        # What is needed besides, each for the right machine; and nothing that does not run there.
        assert len(entries) == len(conda_of(machine)["specs"]) + 1
        assert any("/noarch/tzdata-" in line for line in entries)
        assert any(f"/{conda_of(machine)['platform']}/cmake-1.0-" in line for line in entries)
    assert "arm-variant-1.0-sbsa" in site.lock(ARM)

    before = {name: site.lock(name) for name in (X86, ARM)}
    # Newer packages are nothing to a lock that is there.
    site.offer([{"name": "ninja", "version": "2.0", "subdir": "linux-64", "depends": ["tzdata"]}])
    said = site.play()
    assert changed(said) == NONE
    assert "WARNING" not in said.replace("[WARNING]: Found variable", ""), said
    assert {name: site.lock(name) for name in (X86, ARM)} == before

    # Asked for, they come; what has not changed stays, and check mode shows it all before.
    renew = ("-e", "toolchain_conda_lock_renew=true")
    said = site.play("--check", *renew)
    assert changed(said) == {**NONE, "ada": 1}
    assert re.search(r"^\+\S+/ninja-2.0-h0_0", said, re.MULTILINE)
    assert {name: site.lock(name) for name in (X86, ARM)} == before
    # A lock of something else goes in the same way, and no other.
    (site.inventory / ARM).write_text("@EXPLICIT\n", encoding="utf-8")
    assert changed(site.play(*renew)) == {**NONE, "ada": 1, "spark": 1}
    assert "ninja-2.0" in site.lock(X86)
    assert site.lock(ARM) == before[ARM]


BROKEN = b"\x7fELF of another machine\n"
# By host what it says, and the words in which it is refused.
REFUSED: dict[str, tuple[dict, str]] = {
    "first": (
        {"toolchain_conda_lock": "{{ folder }}/one.txt"},
        "one.txt is to be the lock of different toolchains, those of first, spark. Name one for each",
    ),
    "spark": (
        {"toolchain_conda_lock": "{{ folder }}/one.txt"},
        "or none: then each kind has its own beside the inventory",
    ),
    "relative": (
        {"toolchain_conda_lock": "files/one.txt"},
        'toolchain_conda_lock is "files/one.txt": it is the whole path of a file on the controller',
    ),
    "other": (
        {"toolchain_conda_lock": "{{ folder }}/other.txt"},
        "other.txt is not one of this host's toolchain: c-compiler is missing;",
    ),
    "program": (
        {"toolchain_conda_micromamba_sha256": "", "toolchain_conda_lock": "{{ folder }}/program.txt"},
        "micromamba needs its sha256 there, 64 hexadecimal digits",
    ),
    "channel": (
        {"toolchain_conda_channel": "{{ address }}/nowhere", "toolchain_conda_lock": "{{ folder }}/channel.txt"},
        "/nowhere: could not find subdir 'noarch'",
    ),
    "version": (
        {"toolchain_cuda_version": "12.9", "toolchain_conda_lock": "{{ folder }}/version.txt"},
        "No candidates were found for cuda-version",
    ),
    "digest": (
        {"toolchain_conda_lock": "{{ folder }}/digest.txt"},
        "git has no sha256 but '': the channel {{ address }} states none for {{ address }}/linux-64/git-1.0-h0_0",
    ),
    "distribution": (
        {"told_distribution": "Ubuntu", "told_version": "24.04", "toolchain_conda_lock": "{{ folder }}/ubuntu.txt"},
        "The toolchain is planned for Fedora, and this host is Ubuntu 24.04. Build on a Fedora host",
    ),
    "started": (
        {
            "toolchain_conda_micromamba_url": "file://{{ folder }}/broken",
            "toolchain_conda_micromamba_sha256": hashlib.sha256(BROKEN).hexdigest(),
            "toolchain_conda_lock": "{{ folder }}/started.txt",
        },
        "msg: Error executing command. rc: 8 ",
    ),
}


def test_what_cannot_be_locked_is_refused(made, tmp_path):
    capabilities = ["75", "80", "86", "87", "89", "90", "100", "103", "120", "121"]
    site = made(
        {
            name: {"llama_build_cuda_architectures": [capability], **variables}
            for (name, (variables, _words)), capability in zip(REFUSED.items(), capabilities, strict=True)
        }
    )
    site.offer(packages())
    repodata = site.channel / "linux-64" / "repodata.json"
    stated = json.loads(repodata.read_text(encoding="utf-8"))
    stated["packages"]["git-1.0-h0_0.tar.bz2"].pop("sha256")
    repodata.write_text(json.dumps(stated), encoding="utf-8")
    (tmp_path / "other.txt").write_text("@EXPLICIT\n", encoding="utf-8")
    (tmp_path / "broken").write_bytes(BROKEN)

    said = site.play(status=2)
    words = " ".join(said.replace("''", "'").split())
    for name, (_variables, wanted) in REFUSED.items():
        assert f"fatal: [{name}" in words
        assert wanted.replace("{{ address }}", site.address) in words, f"{name}: {said}"
    assert site.locks() == []
    assert [path.name for path in tmp_path.glob("*.txt")] == ["other.txt"]
    assert (tmp_path / "other.txt").read_text(encoding="utf-8") == "@EXPLICIT\n"
