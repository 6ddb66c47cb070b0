# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages of bin/test. Each takes the tally, runs its checks and counts them."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from . import console, machine, tree

PLUGIN_KINDS = ("action", "doc_fragments", "filter", "module_utils", "modules", "plugin_utils")


@dataclasses.dataclass
class Tally:
    """What passed, failed and was skipped, with the names of what did not pass."""

    passed: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

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
    tally.check("ruff", ["ruff", "check", "."], cwd=copied)
    tally.check("ruff format", ["ruff", "format", "--check", "--diff", "."], cwd=copied)
    for kind in ("plugins", "bin/support"):
        tally.check(f"mypy {kind}", ["mypy", "--cache-dir", machine.cache_dir() / "mypy", kind], cwd=copied, env=env)
    tally.check("yamllint", ["yamllint", "--strict", "."], cwd=copied)
    tally.check(
        "ansible-lint", ["ansible-lint", "--offline", "--config-file", ".config/ansible-lint.yml"], cwd=copied, env=env
    )
    tally.check("antsibull-docs", ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "."], cwd=copied, env=env)
    tally.check("antsibull-changelog", ["antsibull-changelog", "lint"], cwd=copied, env=env)
    leaks = _registry_hosts(copied)
    tally.expect("no registry's host is named", not leaks, "; ".join(leaks))


def _registry_hosts(copied: Path) -> list[str]:
    """Name the files that hold the host of a package registry: mirrors are the machine's own setting."""
    # Put together here, so that this file does not name them either.
    hosts = ["pypi" + ".org", "python" + "hosted.org", "registry.npm" + "js", "deb.debian" + ".org"]
    found = []
    for path in sorted(copied.rglob("*")):
        if ".git" in path.parts or not path.is_file() or path.suffix in {".gz", ".png"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(copied)} names {host}" for host in hosts if host in text]
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
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", "tests/unit"],
        cwd=copied,
        env=_environment(),
    )


def newest_python() -> str | None:
    """Return a Python that the newest ansible-core runs on (3.12 or later), where this machine has one."""
    candidates = [f"python3.{minor}" for minor in (14, 13, 12)]
    found = [path for name in candidates if (path := shutil.which(name))]
    found += [
        str(path) for minor in (14, 13, 12) for path in Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3")
    ]
    for python in found:
        version = console.output([python, "-c", "import venv, ensurepip, sys; print(sys.version_info >= (3, 12))"])
        if version and version.strip() == "True":
            return python
    return None


STAGES: dict[str, Callable[[Tally], None]] = {
    "lint": lint,
    "sanity": sanity,
    "unit": unit,
}
DEFAULT: tuple[str, ...] = tuple(STAGES)
