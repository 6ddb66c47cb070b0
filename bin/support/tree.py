# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of this checkout under the path that Ansible's tools want.

ansible-test refuses a tree outside `ansible_collections/NAMESPACE/NAME` and resolves links;
molecule's prerun may delete the tree it finds there. So tests never run on the checkout itself.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import threading
from pathlib import Path

from . import console
from .machine import ROOT, cache_dir

_one_at_a_time = threading.Lock()


def collections_path(kind: str = "tree") -> Path:
    return cache_dir() / kind


def files() -> list[Path]:
    """Return the files of the checkout that belong to it, relative to its root."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    names = [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]
    # The link that lets a clone find itself would make the copy contain itself.
    return [path for path in names if path.parts[0] != ".collections" and (ROOT / path).is_file()]


def copy(kind: str = "tree") -> Path:
    """Bring the copy in step with the checkout and return its folder; only files that differ are written."""
    with _one_at_a_time:
        return _copy(kind)


def _copy(kind: str) -> Path:
    target = collections_path(kind) / "ansible_collections" / "llamafleet" / "turboquant"
    target.mkdir(parents=True, exist_ok=True)
    wanted = set(files())
    for path in sorted(target.rglob("*"), reverse=True):
        relative = path.relative_to(target)
        if relative.parts[0] == ".git" or relative in wanted:
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()
    for relative in wanted:
        source, copied = ROOT / relative, target / relative
        if copied.exists() and filecmp.cmp(source, copied, shallow=False):
            if source.stat().st_mode != copied.stat().st_mode:
                shutil.copymode(source, copied)
            continue
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copied)
    # ansible-test and ansible-lint list files by git.
    quiet = ["git", "-C", str(target), "-c", "user.name=tests", "-c", "user.email=tests@example.org"]
    if not (target / ".git").is_dir():
        console.run(["git", "init", "--quiet", target])
    console.run([*quiet, "add", "--all", "--force"])
    return target
