#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the way from a finished artifact to hosts that serve it, beside plain copies of the same bytes.

usage: bench_serve.py --artifact FILE --model FILE [--hosts N]   run in a tree below
ansible_collections/llamafleet/turboquant

Two figures are ours: what a host costs whatever the size of the files, and what each further byte costs. The first is
measured with the artifact and the model that are given; the second is the difference that a larger release and a larger
model make, all their further bytes random. Both are processor time, which neighbours disturb less than the clock, and
both are held against something of the same machine, so that a slow one is no reason to fail: a host against a play
that only pings it (--steps), a byte against copying it once and proving it once (--release, --file). The hosts are
entered by their namespaces (tests/host/connection): starting podman would take longer than what is to be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _artifact

TOP = Path(__file__).resolve().parents[2]
HOST, PODMAN = (TOP / "tests/host" / name for name in ("host", "podman"))
sys.path.insert(0, str(HOST.parent))

from machine import PIDS  # noqa: E402  (tests/host has to be on the path first)

PORT = 18080
MIB = 1 << 20
# What a run is made of, in its order: each is timed by itself.
ROLES = ("llama_install", "llama_model", "llama_server")
# What a fleet may get, for a sentence on where its time would go: a CUDA build and a model of 26 billion parameters.
REAL = {"a release": 0.5e9, "a model": 17e9}
# Random bytes that a release gets: a build for several GPU architectures has some hundred MB.
FURTHER = 192 * MIB
# Two files that model_file sends in as many chunks (128 MiB, and what is left), so that their bytes alone differ.
FILES = (144 * MIB, 384 * MIB)


class Cost(NamedTuple):
    """What something took: by the clock, and of the processors the controller, the hosts and the copying."""

    seconds: float
    controller: float
    hosts: float
    copying: float

    @property
    def processor(self) -> float:
        return self.controller + self.hosts + self.copying

    def minus(self, other: Cost) -> Cost:
        return Cost(*(mine - its for mine, its in zip(self, other)))

    def in_words(self) -> str:
        return (
            f"{self.seconds:.1f} s; of the processors {self.controller:.1f} s for Ansible on the controller, "
            f"{self.hosts:.1f} s for modules on the hosts, {self.copying:.1f} s for copying"
        )


def run(*command: str | Path) -> str:
    """Run a command and return its output; a failure shows all of it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def spent(who: int) -> float:
    """Return the processor seconds of this process or of its children."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def fingerprint_of(artifact: Path) -> str:
    return str(_artifact.read_manifest(artifact)["fingerprint"])


def on_all(names: Iterable[str], work: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, names))


def random_bytes(path: Path, size: int) -> Path:
    with path.open("wb") as stream:
        for _block in range(size // MIB):
            stream.write(os.urandom(MIB))
    return path


def larger(artifact: Path, folder: Path) -> Path:
    """Make an artifact that has a large file more, with a name of its own."""
    stage = folder / "stage"
    with tarfile.open(artifact) as archive:
        archive.extractall(stage, filter="data")
    manifest = json.loads((stage / _artifact.MANIFEST).read_text(encoding="utf-8"))
    (stage / _artifact.MANIFEST).unlink()
    random_bytes(stage / "lib" / "kernels.bin", FURTHER)
    manifest.update(fingerprint="b" * 32, files=_artifact.list_files(stage))
    made = folder / f"larger{_artifact.SUFFIX}"
    _artifact.pack(stage, manifest, made)
    shutil.rmtree(stage)
    return made


def release_variables(artifact: Path) -> dict[str, Any]:
    return {"llama_install_fingerprint": fingerprint_of(artifact), "llama_install_artifact": str(artifact)}


def file_variables(model: Path) -> dict[str, Any]:
    return {"llama_model_files": [{"name": model.name, "path": str(model), "sha256": _artifact.sha256_file(model)}]}


class Fleet:
    """The hosts, and runs of roles on all of them."""

    def __init__(self, names: list[str], folder: Path, variables: dict[str, Any]) -> None:
        self.hosts: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.folder = folder
        connection = {"ansible_connection": "entered", "ansible_python_interpreter": "/usr/bin/python3"}
        self.variables = {**connection, **variables}

    def ping(self) -> Cost:
        """Run the simplest play that there is: it starts Ansible, and Python on each host, once."""
        return self._run({"tasks": [{"name": "Answer", "ansible.builtin.ping": {}}]}, {})

    def play(self, role: str, **more: Any) -> Cost:
        """Run a role on all hosts as a playbook does."""
        return self._run({"roles": [{"role": f"llamafleet.turboquant.{role}"}]}, more)

    def _run(self, what: dict[str, Any], more: dict[str, Any]) -> Cost:
        """Run a play on all hosts; a host that fails ends the bench."""
        inventory = {"all": {"hosts": self.hosts, "vars": {**self.variables, **more}}}
        (self.folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
        steps = [{"hosts": "all", "gather_facts": False, **what}]
        (self.folder / "play.yml").write_text(json.dumps(steps), encoding="utf-8")
        usage = self.folder / "usage"
        usage.write_text("", encoding="utf-8")
        os.environ["ENTERED_USAGE"] = str(usage)
        os.environ["ANSIBLE_CONNECTION_PLUGINS"] = str(HOST.with_name("connection"))
        program = shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        begun, before = time.perf_counter(), spent(resource.RUSAGE_CHILDREN)
        run(
            program or "ansible-playbook", f"--forks={len(self.hosts)}",
            "--inventory", self.folder / "hosts.json", self.folder / "play.yml",
        )  # fmt: skip
        seconds, processor = time.perf_counter() - begun, spent(resource.RUSAGE_CHILDREN) - before
        parts = {"command": 0.0, "copy": 0.0}
        for line in usage.read_text(encoding="utf-8").splitlines():
            noted = json.loads(line)
            parts[noted["kind"]] += noted["seconds"]
        return Cost(seconds, processor - sum(parts.values()), parts["command"], parts["copy"])

    def copy(self, *files: Path) -> float:
        """Copy files to every host by the connection's own means; return the seconds that it took."""
        begun = time.perf_counter()
        for name in self.hosts:
            pid = (PIDS / name).read_text(encoding="ascii").strip()
            for file in files:
                target = Path(f"/proc/{pid}/root/srv") / file.name
                shutil.copyfile(file, target)
                target.unlink()
        return time.perf_counter() - begun


def plain(files: Iterable[Path], copies: int, folder: Path) -> tuple[float, float, float]:
    """Copy files as `cp` does; return the seconds, those until all is on the disk, and the processor seconds."""
    made = []
    begun, before = time.perf_counter(), spent(resource.RUSAGE_SELF)
    for number in range(copies):
        for file in files:
            made.append(folder / f"copy-{number}-{file.name}")
            shutil.copyfile(file, made[-1])
    copied, processor = time.perf_counter() - begun, spent(resource.RUSAGE_SELF) - before
    for copy in made:
        with copy.open("rb") as stream:
            os.fsync(stream.fileno())
    kept = time.perf_counter() - begun
    for copy in made:
        copy.unlink()
    return copied, kept, processor


def proof(path: Path) -> float:
    """Return the processor seconds of one look at all bytes, as a host proves them."""
    before = spent(resource.RUSAGE_SELF)
    if path.name.endswith(_artifact.SUFFIX):
        _artifact.verify(path)
    else:
        _artifact.sha256_file(path)
    return spent(resource.RUSAGE_SELF) - before


def server_seconds(name: str) -> float:
    """Return the processor seconds that the host's server has taken so far: for loading, and for the gate."""
    pid = run(PODMAN, "exec", name, "systemctl", "show", "--property=MainPID", "--value", "llama-server@bench")
    fields = run(PODMAN, "exec", name, "cat", f"/proc/{pid.strip()}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def fixed(fleet: Fleet, artifact: Path, model: Path, folder: Path) -> tuple[list[str], float, float]:
    """Bring all hosts to serving and print the parts; return what is wrong, a host's cost in pings, and the seconds."""
    names = list(fleet.hosts)
    ping = fleet.ping()
    parts = {role: fleet.play(role) for role in ROLES}
    servers = sum(map(server_seconds, names))
    wrong = [why for name in names if (why := serves(name, fingerprint_of(artifact)))]
    copied, kept, _processor = plain((artifact, model), len(names), folder)
    total = sum(part.seconds for part in parts.values())
    sizes = " and ".join(f"{file.stat().st_size / 1e6:.1f} MB" for file in (artifact, model))
    print(f"  {sizes} to {len(names)} hosts on this machine: all serve after {total:.1f} s")
    for role, part in parts.items():
        print(f"    {role} {part.in_words()}")
    print(f"    the servers took {servers:.1f} s of the processors beside that, for loading and for the gate")
    print(
        f"    cp of as many copies {copied:.2f} s, {kept:.2f} s until they are on the disk; into the hosts "
        f"{fleet.copy(artifact, model):.2f} s",
        flush=True,
    )
    processor = sum(part.processor for part in parts.values())
    pings = processor / ping.processor
    print(
        f"    a host costs {processor / len(names):.1f} s of the processors, as much as {pings:.1f} plays that only"
        f" ping it ({ping.processor / len(names):.2f} s)",
        flush=True,
    )
    return wrong, pings, total


def further(
    what: str, small: Cost, large: Cost, files: tuple[Path, Path], hosts: int, folder: Path
) -> tuple[float, float, float]:
    """Print what the larger file's further bytes cost; return how often they could be copied and proved for that.

    And the seconds by the clock of the bytes in REAL, with us and with `cp` until they are on the disk.
    """
    cost = large.minus(small)
    sizes = [file.stat().st_size for file in files]
    count = (sizes[1] - sizes[0]) * hosts
    copied, kept, processor = plain(files[1:], hosts, folder)
    # Of the whole larger file: by the byte that is the same, and steadier than a difference.
    proved = proof(files[1]) / sizes[1] * 1e9
    each = {name: value / count * 1e9 for name, value in cost._asdict().items()}
    # The copying is that of the same minutes: what the kernel takes for a byte depends on who else writes.
    times = cost.processor / count * 1e9 / (each["copying"] + proved)
    print(
        f"  each further byte of {what} ({count / 1e9:.1f} GB to {hosts} hosts): {each['seconds']:.2f} ns by the clock;"
        f" of the processors {each['controller']:.2f} ns on the controller, {each['hosts']:.2f} ns on the host,"
        f" {each['copying']:.2f} ns for copying it there"
    )
    per = 1e9 / (sizes[1] * hosts)
    print(
        f"    cp {copied * per:.2f} ns, {kept * per:.2f} ns until it is on the disk, {processor * per:.2f} ns of the"
        f" processors; proving it once takes {proved:.2f} ns of them: ours is {times:.1f} times copying and proving",
        flush=True,
    )
    size = REAL[what] * hosts * 1e-9
    return times, each["seconds"] * size, kept * per * size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--prefix", default="llamafleet-bench-serve-")
    parser.add_argument("--steps", type=float, required=True, help="a host's cost in plays that only ping it")
    parser.add_argument("--release", type=float, required=True, help="a release's byte in copies with a proof")
    parser.add_argument("--file", type=float, required=True, help="a model's byte in copies with a proof")
    options = parser.parse_args()
    names = [f"{options.prefix}{number:02d}" for number in range(1, options.hosts + 1)]
    variables = {
        **release_variables(options.artifact),
        **file_variables(options.model),
        "llama_server_build": "upstream-b11434",
        # Ten servers on the processors of one machine: one thread each, and time to wait for them.
        "llama_server_gate_timeout": 300,
        "llama_server_instances": [
            {"name": "bench", "model": options.model.name, "port": PORT, "ctx_size": 1024, "threads": 1}
        ],
    }
    try:
        run(HOST, "up", *names)
        # The libraries that every artifact needs are no part of the way.
        install = ("dnf5", "--quiet", "--assumeyes", "install", "libgomp", "libstdc++")
        on_all(names, lambda name: run(PODMAN, "exec", name, *install))
        with tempfile.TemporaryDirectory(prefix="bench-serve-", dir="/var/tmp") as held:
            folder = Path(held)
            fleet = Fleet(names, folder, variables)
            wrong, pings, seconds = fixed(fleet, options.artifact, options.model, folder)
            # What serves would take from the processors what is to be counted.
            on_all(names, lambda name: run(PODMAN, "exec", name, "systemctl", "stop", "llama-server@bench"))
            files = tuple(random_bytes(folder / f"{size // MIB}.gguf", size) for size in FILES)
            small, large = (fleet.play("llama_model", **file_variables(file)) for file in files)
            by_file, model, model_cp = further("a model", small, large, (files[0], files[1]), len(names), folder)
            artifact = larger(options.artifact, folder)
            # Again from nothing, beside the same of the larger one: what is there is not sent.
            on_all(names, lambda name: run(PODMAN, "exec", name, "rm", "-rf", "/opt/llamafleet", "/var/lib/llamafleet"))
            small = fleet.play("llama_install")
            large = fleet.play("llama_install", **release_variables(artifact))
            by_release, release, release_cp = further(
                "a release", small, large, (options.artifact, artifact), len(names), folder
            )
    finally:
        run(HOST, "down", "--prefix", options.prefix)
    bytes_alone, by_cp = model + release, model_cp + release_cp
    real = " and ".join(f"{what} of {size / 1e9:g} GB" for what, size in REAL.items())
    print(
        f"  so {real} would take {len(names)} such hosts about {seconds + bytes_alone:.0f} s: {seconds:.0f} s whatever"
        f" the size, {bytes_alone:.0f} s for the bytes, where cp alone takes {by_cp:.0f} s"
    )
    for what, value, limit in (
        ("a host costs as much as {} plays that only ping it", pings, options.steps),
        ("a byte of a release costs {} times copying and proving it", by_release, options.release),
        ("a byte of a model costs {} times copying and proving it", by_file, options.file),
    ):
        if value > limit:
            wrong.append(f"{what.format(format(value, '.1f'))}, and the limit is {limit:g}")
    for line in wrong:
        print(f"  {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
