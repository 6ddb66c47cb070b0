# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that runs bin/demo and bin/test: its packages, its virtual environment, its caches."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from . import console

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "controller.txt"

# Command that tells whether it is there -> package that brings it, for each package manager.
_NEEDED: dict[str, dict[str, str]] = {
    "apt-get": {
        "podman": "podman",
        "runc": "runc",
        "crun": "crun",
        "debootstrap": "debootstrap",
        "git": "git",
        "ip": "iproute2",
        "ps": "procps",
        "/usr/lib/podman/netavark": "netavark",
        "/usr/lib/podman/aardvark-dns": "aardvark-dns",
        # podman's bridge network, and Debian's signatures on what the stand-in host is made from.
        "/usr/sbin/iptables": "iptables",
        "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
        "/usr/share/ca-certificates": "ca-certificates",
    },
    "dnf": {
        "podman": "podman",
        "runc": "runc",
        "crun": "crun",
        "debootstrap": "debootstrap",
        "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-keyring",
        "git": "git-core",
        "ip": "iproute",
        "ps": "procps-ng",
    },
}


def cache_dir() -> Path:
    """Return the folder that keeps what is costly to make again; LLAMAFLEET_CACHE moves it."""
    return Path(os.environ.get("LLAMAFLEET_CACHE") or "/var/cache/llamafleet")


def _again(python: str, module: str) -> list[str]:
    """Return the command that runs this program again, under `python`."""
    return ["env", f"PYTHONPATH={ROOT / 'bin'}", python, "-m", module, *sys.argv[1:]]


def become_root(module: str) -> None:
    """Start this program again through sudo where the user is not root: it starts privileged containers."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if not sudo:
        sys.exit("This needs root, to install packages and start a container with systemd: be root or install sudo.")
    kept = [
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith(("LLAMAFLEET_", "PIP_")) or name.endswith("_proxy")
    ]
    os.execv(sudo, [sudo, "--", "env", *kept, *_again(sys.executable, module)])


def _manager() -> str:
    for name in _NEEDED:
        if shutil.which(name):
            return name
    sys.exit("Neither apt-get nor dnf is here: this runs on Debian 12 or 13 and Fedora 43 or 44.")


def _installed(manager: str) -> set[str]:
    """Return the names of the installed packages; without those of which dpkg keeps only the settings."""
    if manager == "apt-get":
        listing = console.output(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"]) or ""
        rows = [line.split() for line in listing.splitlines()]
        return {name for state, name in rows if state not in ("config-files", "not-installed")}
    return set((console.output(["rpm", "-qa", "--qf", "%{NAME}\n"]) or "").split())


def _present(what: str) -> bool:
    return Path(what).exists() if what.startswith("/") else shutil.which(what) is not None


def install_packages() -> None:
    """Install what is missing, by the machine's own package manager, and note exactly what was added.

    Fetching can be interrupted; installing is not, and what a killed call left half done is finished first.
    """
    manager = _manager()
    if _before().exists():
        _resume(manager)
    missing = sorted({package for what, package in _NEEDED[manager].items() if not _present(what)})
    if manager == "apt-get" and not _has_venv():
        missing.append("python3-venv")
    if not missing:
        return
    with console.phase(f"install with {manager}: {' '.join(missing)}"):
        # Without the recommended packages: a demo should not leave a machine fuller than it must.
        if manager == "apt-get":
            _package_command("apt-get", "update")
            install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
            fetch = [*install, "--download-only"]
        else:
            install = ["dnf", "install", "--assumeyes", "--setopt=install_weak_deps=False", *missing]
            fetch = [*install, "--downloadonly"]
        _package_command(*fetch)
        _before().write_text(json.dumps(sorted(_installed(manager))), encoding="utf-8")
        with console.to_its_end():
            _package_command(*install, own_session=True)
            _note_added(manager)


def _package_command(*argv: str, check: bool = True, own_session: bool = False) -> None:
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    console.run(argv, env=quiet, log=cache_dir() / "packages.log", check=check, own_session=own_session)


def _resume(manager: str) -> None:
    """Finish an installation that was killed: apt refuses any other before that."""
    with console.phase(f"finish what {manager} had begun to install"), console.to_its_end():
        if manager == "apt-get":
            # Fails where a package lies unpacked without one that it depends on, which the second command installs.
            _package_command("dpkg", "--configure", "-a", check=False, own_session=True)
            fix = ("apt-get", "install", "--yes", "--no-install-recommends", "--fix-broken")
            _package_command(*fix, own_session=True)
        _note_added(manager)


def _before() -> Path:
    """Where the names of the installed packages stand while packages are being added."""
    return cache_dir() / "packages-before.json"


def _note_added(manager: str) -> None:
    before = set(json.loads(_before().read_text(encoding="utf-8")))
    _note_packages(manager, _installed(manager) - before)
    _before().unlink()


def _notes() -> Path:
    return cache_dir() / "installed-packages.json"


def _note_packages(manager: str, added: set[str]) -> None:
    noted = json.loads(_notes().read_text(encoding="utf-8"))["packages"] if _notes().exists() else []
    _notes().write_text(json.dumps({"manager": manager, "packages": sorted({*noted, *added})}), encoding="utf-8")


def remove_packages() -> None:
    """Take back exactly the packages that install_packages added, unless something else needs them by now."""
    if _before().exists():
        _resume(_manager())
    if not _notes().exists():
        return
    note = json.loads(_notes().read_text(encoding="utf-8"))
    manager, ours = note["manager"], set(note["packages"]) & _installed(note["manager"])
    if not ours:
        return
    if manager == "apt-get":
        plan = console.output(["apt-get", "--simulate", "remove", *sorted(ours)], env={"LC_ALL": "C"}) or ""
        taken = {line.split()[1].partition(":")[0] for line in plan.splitlines() if line.startswith("Remv ")}
        command = ["apt-get", "purge", "--yes", *sorted(ours)]
    else:
        erasable = console.output(["rpm", "--erase", "--test", *sorted(ours)]) is not None
        taken = ours if erasable else set()
        command = ["dnf", "remove", "--assumeyes", "--no-autoremove", *sorted(ours)]
    if taken != ours:
        others = ", ".join(sorted(taken - ours)) or "other packages"
        console.say(f"Left installed, because {others} would go with them: {' '.join(sorted(ours))}")
        return
    with console.phase(f"remove the {len(ours)} packages that were installed for this"), console.to_its_end():
        _package_command(*command, own_session=True)


def _has_venv(python: str = sys.executable) -> bool:
    return console.output([python, "-c", "import venv, ensurepip"]) is not None


def virtualenv(python: str = sys.executable) -> Path:
    """Return the `bin` folder of a virtual environment that holds exactly what the lock names.

    The folder is named after the lock's digest and the interpreter's version, and counts as
    complete only with its stamp: an interrupted installation is begun again.
    """
    version = (console.output([python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]) or "").strip()
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    folder = cache_dir() / f"venv-py{version}-{digest}"
    stamp = folder / "complete"
    if not stamp.exists():
        with console.phase(f"make a virtual environment for Python {version}"):
            for old in cache_dir().glob(f"venv-py{version}-*"):
                shutil.rmtree(old)
            console.run([python, "-m", "venv", folder])
            console.run(
                [folder / "bin" / "pip", "install", "--require-hashes", "--requirement", LOCK],
                env={"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1"},
                log=cache_dir() / "pip.log",
            )
            stamp.touch()
    return folder / "bin"


def prepare() -> Path:
    """Make this machine ready and return the `bin` folder of the virtual environment."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    install_packages()
    return virtualenv()


def enter_virtualenv(module: str) -> Path:
    """Make the machine ready and go on inside the virtual environment; return its `bin` folder.

    `module` is the name under which the running program can be started again.
    """
    become_root(module)
    bin_dir = prepare()
    if Path(sys.prefix) != bin_dir.parent:
        os.environ["PATH"] = f"{bin_dir}:{os.environ['PATH']}"
        os.execvp("env", _again(str(bin_dir / "python"), module))
    # Was for finding this package; what is started from here has its own ideas.
    os.environ.pop("PYTHONPATH", None)
    return bin_dir
