# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The room on a builder: what builds take of it, what those that run will still take, and what nobody needs any more.

Private to the collection: it may change at any time. Standard library only.

Who decides by what is found here holds `alone` while it does, and until what it starts is found by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import _artifact, _build_job

# The names that builds give; a file of another name is somebody else's.
_TREE = re.compile(r"(?:git|archive|directory)-[0-9a-f]{40,64}")
# What is written beside a tree or an artifact until that is whole.
_TREE_BEGUN = re.compile(r"\.((?:git|archive|directory)-[0-9a-f]{40,64})-\d+(?:\.tar)?")
_ARTIFACT_BEGUN = re.compile(r"\.([0-9a-f]{32})\.tar\.gz\.\d+")
_REPOSITORY = re.compile(r"[0-9a-f]{16}\.git")
_DOWNLOAD = re.compile(r"([0-9a-f]{64})(?:\.partial|\.sent)?")
# What `remove` was stopped at.
_GONE = re.compile(r"\.gone-.+")


class Left(NamedTuple):
    """A build as its work folder tells of it."""

    work: Path
    # Whether it runs, or a compiler of it still does.
    busy: bool
    # Whether its last run has ended. The process of one that is done holds the lock a moment longer.
    over: bool
    # Both of its last run.
    started: float
    ended: float
    need_mib: int
    # kind, identity and url; empty where nothing tells.
    source: dict[str, str]


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
            job, status = _read(work / "job.json"), _read(work / "status.json")
            made, busy = work.stat().st_mtime, _build_job.held(work)
            found.append(
                Left(
                    work=work,
                    busy=busy,
                    over=bool(status.get("finished")) or not busy,
                    started=float(status.get("started", made)),
                    ended=float(status.get("updated", made)),
                    need_mib=int(job.get("need_mib", 0)),
                    source={key: str((job.get("source") or {}).get(key, "")) for key in ("kind", "identity", "url")},
                )
            )
    return found


def _read(path: Path) -> dict[str, Any]:
    # A build that was killed while it was started has left none.
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def used_mib(top: Path) -> int:
    """Return what a file or folder takes on the disk; one that is not there takes nothing."""
    blocks = top.lstat().st_blocks if top.is_file() else 0
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


def superfluous(root: Path, keep: int, fingerprint: str, source: Mapping[str, str]) -> list[Path]:
    """Return what of a builder's folder nobody needs any more, the build of this name and source being the current one.

    The newest artifacts stay, `keep` of them, each with its logs and its source, from which a build with other options
    begins. So does what a build that runs works with, and a failed or killed build, which goes on where it stopped. A
    build is given up once another one has begun after its end, and has ended: whoever still wanted it has had a run.
    """
    builds = read_builds(root)
    busy = {build.work.name for build in builds if build.busy} | {fingerprint}
    artifacts = {path.name[: -len(_artifact.SUFFIX)]: path for path in (root / "artifacts").glob("*.tar.gz")}
    names = [name for name in artifacts if _artifact.FINGERPRINT.fullmatch(name)]
    names.sort(key=lambda name: artifacts[name].stat().st_mtime_ns, reverse=True)
    old = _artifact.to_prune(names, keep, busy)
    kept = {name for name in names if name not in old}
    last = max((build.started for build in builds if build.over), default=0.0)
    given_up = {
        build.work.name
        for build in builds
        if build.work.name not in busy | kept and (build.work.name in old or last > build.ended)
    }
    staying = [build for build in builds if build.work.name not in given_up]
    needed = [source, *(build.source for build in staying), *(_source_of(artifacts[name]) for name in sorted(kept))]
    working = {_tree(build.source) for build in staying if build.busy}
    trees = {_tree(item) for item in needed}
    repositories = {_build_job.repository_name(item["url"]) for item in needed if item["kind"] == "git"}
    # An archive is unpacked once, and its file removed then.
    digests = {source["identity"], *(build.source["identity"] for build in staying if build.work.name not in kept)}

    gone = [artifacts[name] for name in old]
    gone += [build.work for build in builds if build.work.name in given_up]
    for folder, pattern, stays in (
        ("artifacts", _ARTIFACT_BEGUN, busy),
        ("sources", _TREE, trees),
        ("sources", _TREE_BEGUN, working),
        ("git", _REPOSITORY, repositories),
        ("downloads", _DOWNLOAD, digests),
        *((folder, _GONE, ()) for folder in ("artifacts", "work", "sources", "git", "downloads")),
    ):
        for path in sorted((root / folder).glob("*")):
            match = pattern.fullmatch(path.name)
            # The part of the name that says whose it is.
            if match is not None and match.group(match.lastindex or 0) not in stays:
                gone.append(path)
    return gone


def _tree(source: Mapping[str, str]) -> str:
    return f"{source['kind']}-{source['identity']}"


def _source_of(artifact: Path) -> dict[str, str]:
    try:
        said = _artifact.read_manifest(artifact)["source"]
    except _artifact.ArtifactError:
        # A damaged one needs no source; the next build of its name makes both anew.
        said = {}
    identity = next((str(said[key]) for key in ("commit", "sha256", "digest") if key in said), "")
    return {"kind": str(said.get("kind", "")), "identity": identity, "url": str(said.get("url", ""))}


def remove(paths: list[Path]) -> list[Path]:
    """Remove files and folders; return those that are gone.

    A folder is renamed first: where this is killed half-way, no build finds half a source under the name of a whole.
    """
    gone = []
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            aside = path
            if _GONE.fullmatch(path.name) is None:
                aside = path.with_name(f".gone-{path.name}-{os.getpid()}")
                path.rename(aside)
            # What cannot be removed (an immutable file, say) is no reason to refuse a build that has room: it is not in
            # the answer, and the next build tries again. Where the room is lacking, the check of the disk says so.
            shutil.rmtree(aside, ignore_errors=True)
            if aside.exists():
                continue
        else:
            path.unlink(missing_ok=True)
        gone.append(path)
    return gone
