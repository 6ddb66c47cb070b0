# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The room on a builder: what builds take of it, and what those that run will still take.

Private to the collection: it may change at any time. Standard library only.

Who decides by what is found here holds `alone` while it does, and until what it starts is found by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import _artifact, _build_job


class Left(NamedTuple):
    """A build as its work folder tells of it."""

    work: Path
    # Whether it runs, or a compiler of it still does.
    busy: bool
    need_mib: int


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep other runs from starting a build on this builder meanwhile. A killed run leaves no lock behind."""
    locks = root / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / "builder.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_builds(root: Path) -> list[Left]:
    """Return the builds of which there is a work folder."""
    found = []
    for work in sorted((root / "work").glob("*")):
        if _artifact.FINGERPRINT.fullmatch(work.name) is not None and work.is_dir():
            job = _read(work / "job.json")
            found.append(Left(work=work, busy=_build_job.held(work), need_mib=int(job.get("need_mib") or 0)))
    return found


def _read(path: Path) -> dict[str, Any]:
    # A build that was killed while it was started has left none.
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def used_mib(top: Path) -> int:
    """Return what a folder takes on the disk; one that is not there takes nothing."""
    blocks = 0
    for folder, _folders, files in os.walk(top):
        for name in files:
            # Compilers come and go with their files meanwhile.
            with contextlib.suppress(FileNotFoundError):
                blocks += Path(folder, name).lstat().st_blocks
    return blocks * 512 // (1024 * 1024)


def still_needed(need_mib: int, work: Path) -> int:
    """Return what a build will take on top of what it has taken already."""
    return max(0, need_mib - used_mib(work))


def promised_mib(root: Path, fingerprint: str) -> int:
    """Return what the builds that run will still take, the named one apart."""
    return sum(
        still_needed(build.need_mib, build.work)
        for build in read_builds(root)
        if build.busy and build.work.name != fingerprint
    )
