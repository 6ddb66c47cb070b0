#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the way from a finished artifact to hosts that hold it as a release, beside plain copies of the same bytes.

usage: bench_install.py --wheel SERVER_WHEEL [--hosts N] [--limit SECONDS]   run in a tree below
ansible_collections/llamafleet/turboquant
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _artifact

TOP = Path(__file__).resolve().parents[2]
HOST, PODMAN = (TOP / "tests/host" / name for name in ("host", "podman"))
FINGERPRINT = "b" * 32


def run(*command: str | Path) -> str:
    """Run a command and return its output; a failure shows all of it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def make_artifact(wheel: Path, folder: Path) -> Path:
    """Pack the real server of a wheel as a build of ours would be packed."""
    stage = folder / "stage"
    (stage / "bin").mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = Path(name).name
            # Each library is there under three names; the loader asks for one.
            if base == "llama-server" or base.endswith((".so.0", ".so.1", "-impl.so")):
                (stage / "bin" / base).write_bytes(archive.read(name))
                (stage / "bin" / base).chmod(0o755)
    requirements = _artifact.library_requirements(stage)
    manifest = {
        "format": _artifact.FORMAT,
        "fingerprint": FINGERPRINT,
        "source": {"kind": "archive", "sha256": _artifact.sha256_file(wheel)},
        "backends": ["cpu"],
        "options": {},
        "compilers": {},
        "architecture": requirements.pop("architecture", platform.machine()),
        "distribution": {"id": "fedora", "version": "44"},
        "requirements": {**requirements, "cpu_flags": []},
        "built": {"at": "2026-11-24T00:00:00Z", "seconds": 1},
        "files": _artifact.list_files(stage),
    }
    artifact = folder / f"{FINGERPRINT}{_artifact.SUFFIX}"
    _artifact.pack(stage, manifest, artifact)
    return artifact


def on_all(names: Iterable[str], work: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, names))


def play(names: list[str], artifact: Path, folder: Path) -> None:
    """Run the role as a playbook does; a host that does not hold the release ends the bench."""
    variables = {
        "ansible_connection": "containers.podman.podman",
        "ansible_podman_executable": str(PODMAN),
        "ansible_python_interpreter": "/usr/bin/python3",
        "llama_install_fingerprint": FINGERPRINT,
        "llama_install_artifact": str(artifact),
    }
    inventory = {"all": {"hosts": {name: {} for name in names}, "vars": variables}}
    (folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
    role = {"hosts": "all", "gather_facts": False, "roles": [{"role": "llamafleet.turboquant.llama_install"}]}
    (folder / "play.yml").write_text(json.dumps([role]), encoding="utf-8")
    program = shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    run(program or "ansible-playbook", "--inventory", folder / "hosts.json", folder / "play.yml")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that all hosts together may take")
    options = parser.parse_args()
    names = [f"llamafleet-bench-{number:02d}" for number in range(1, options.hosts + 1)]
    try:
        run(HOST, "up", *names)
        # The libraries that every artifact needs are no part of the way.
        install = ("dnf5", "--quiet", "--assumeyes", "install", "libgomp", "libstdc++")
        on_all(names, lambda name: run(PODMAN, "exec", name, *install))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            artifact = make_artifact(options.wheel, folder)
            plain = timed(lambda: [shutil.copyfile(artifact, folder / f"copy-{host}") for host in names])
            podman = timed(lambda: on_all(names, lambda host: run(PODMAN, "cp", artifact, f"{host}:/srv/copy")))
            ours = timed(lambda: play(names, artifact, folder))
            again = timed(lambda: play(names, artifact, folder))
            size = artifact.stat().st_size
        held = "cd /opt/llamafleet/releases/* && sha256sum bin/* | sha256sum; readlink /opt/llamafleet/current"
        seen = {run(PODMAN, "exec", name, "sh", "-c", held) for name in names}
    finally:
        run(HOST, "down", "--prefix", "llamafleet-bench-")
    print(
        f"{size / 1e6:.1f} MB to {len(names)} hosts: released in {ours:.1f} s (limit {options.limit:g} s),"
        f" again {again:.1f} s; plain cp of as many copies {plain:.2f} s, podman cp into the hosts {podman:.1f} s"
    )
    if len(seen) != 1 or f"releases/{FINGERPRINT}" not in seen.pop():
        print("the hosts do not hold the same release")
        return 1
    if ours > options.limit:
        print(f"the limit is {options.limit:g} s")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
