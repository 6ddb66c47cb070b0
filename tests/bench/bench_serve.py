#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the way from a finished artifact to hosts that serve it, beside plain copies of the same bytes.

usage: bench_serve.py --artifact FILE --model FILE [--hosts N] [--limit SECONDS]   run in a tree below
ansible_collections/llamafleet/turboquant
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _artifact

TOP = Path(__file__).resolve().parents[2]
HOST, PODMAN = (TOP / "tests/host" / name for name in ("host", "podman"))
PORT = 18080
# What a run is made of, in its order: each is timed by itself.
ROLES = ("llama_install", "llama_model", "llama_server")


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


def fingerprint_of(artifact: Path) -> str:
    with tarfile.open(artifact) as archive:
        manifest = archive.extractfile("manifest.json")
        if manifest is None:
            sys.exit(f"{artifact} has no manifest.json")
        return str(json.load(manifest)["fingerprint"])


def on_all(names: Iterable[str], work: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, names))


def variables_of(artifact: Path, model: Path) -> dict[str, Any]:
    """Return what an operator would set: a release, a model and one instance of it."""
    return {
        "ansible_connection": "containers.podman.podman",
        "ansible_podman_executable": str(PODMAN),
        "ansible_python_interpreter": "/usr/bin/python3",
        "llama_install_fingerprint": fingerprint_of(artifact),
        "llama_install_artifact": str(artifact),
        "llama_model_files": [{"name": model.name, "path": str(model), "sha256": _artifact.sha256_file(model)}],
        "llama_server_build": "upstream-b11434",
        # Ten servers on the processors of one machine: one thread each, and time to wait for them.
        "llama_server_gate_timeout": 300,
        "llama_server_instances": [
            {"name": "bench", "model": model.name, "port": PORT, "ctx_size": 1024, "threads": 1}
        ],
    }


def play(names: list[str], variables: dict[str, Any], role: str, folder: Path) -> None:
    """Run a role on all hosts as a playbook does; a host that fails ends the bench."""
    inventory = {"all": {"hosts": {name: {} for name in names}, "vars": variables}}
    (folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
    steps = {"hosts": "all", "gather_facts": False, "roles": [{"role": f"llamafleet.turboquant.{role}"}]}
    (folder / "play.yml").write_text(json.dumps([steps]), encoding="utf-8")
    program = shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    forks = f"--forks={len(names)}"
    run(program or "ansible-playbook", forks, "--inventory", folder / "hosts.json", folder / "play.yml")


def serves(name: str, fingerprint: str) -> str:
    """Say why a host does not serve the release, or nothing."""
    current = run(PODMAN, "exec", name, "readlink", "/opt/llamafleet/current").strip()
    if not current.endswith(f"releases/{fingerprint}"):
        return f"{name} has {current} as its current release"
    body = json.dumps({"prompt": "The capital of France is", "n_predict": 4})
    address = f"http://127.0.0.1:{PORT}/completion"
    ask = f"import urllib.request as r; print(r.urlopen({address!r}, {body.encode()!r}).read().decode())"
    answer = run(PODMAN, "exec", name, "python3", "-c", ask)
    decoded = json.loads(answer).get("tokens_predicted", 0)
    return "" if decoded > 0 else f"{name} decoded nothing: {answer}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds that all hosts together may take")
    options = parser.parse_args()
    names = [f"llamafleet-bench-{number:02d}" for number in range(1, options.hosts + 1)]
    files = (options.artifact, options.model)
    variables = variables_of(*files)
    try:
        run(HOST, "up", *names)
        # The libraries that every artifact needs are no part of the way.
        install = ("dnf5", "--quiet", "--assumeyes", "install", "libgomp", "libstdc++")
        on_all(names, lambda name: run(PODMAN, "exec", name, *install))
        with tempfile.TemporaryDirectory() as held:
            folder = Path(held)
            plain = timed(
                lambda: [shutil.copyfile(file, folder / f"{host}-{file.name}") for host in names for file in files]
            )
            podman = timed(
                lambda: on_all(names, lambda host: [run(PODMAN, "cp", file, f"{host}:/srv/") for file in files])
            )
            first = {role: timed(lambda role=role: play(names, variables, role, folder)) for role in ROLES}
        wrong = [why for name in names if (why := serves(name, variables["llama_install_fingerprint"]))]
    finally:
        run(HOST, "down", "--prefix", "llamafleet-bench-")
    ours = sum(first.values())
    sizes = " and ".join(f"{file.stat().st_size / 1e6:.1f} MB" for file in files)
    parts = ", ".join(f"{role} {seconds:.1f} s" for role, seconds in first.items())
    print(
        f"{sizes} to {len(names)} hosts: all serve after {ours:.1f} s ({parts}; limit {options.limit:g} s);"
        f" plain cp of as many copies {plain:.2f} s, podman cp into the hosts {podman:.1f} s"
    )
    print("\n".join(wrong), end="\n" if wrong else "")
    if wrong:
        return 1
    if ours > options.limit:
        print(f"the limit is {options.limit:g} s")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
