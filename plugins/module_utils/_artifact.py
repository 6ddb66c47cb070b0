# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Artifacts (one tar.gz with its manifest) and the releases that hosts make of them.

Private to the collection: it may change at any time. Standard library only, because the build job
runs it on the builder outside Ansible.

An artifact is `manifest.json` first and then the files in the order of their names, all owned by
0:0 and of one date, so that the same files and the same manifest always give the same bytes.
A release is an artifact unpacked to `releases/<fingerprint>`; it appears there by one rename.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from . import _elf

FORMAT = 1
MANIFEST = "manifest.json"
SUFFIX = ".tar.gz"

# The day from which ZIP and DOS dates count: every tool that handles the archive can show it.
EPOCH = 315532800

FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_STAGING = ".staging-"
_BLOCK = 1024 * 1024

_REQUIRED = (
    "format",
    "fingerprint",
    "source",
    "backends",
    "options",
    "compilers",
    "architecture",
    "distribution",
    "requirements",
    "built",
    "files",
)


class ArtifactError(ValueError):
    """An artifact or a release is not what it must be."""


class Host(NamedTuple):
    """What decides whether an artifact can run on a host."""

    architecture: str
    glibc: str
    # None where the host has no libstdc++.
    glibcxx: str | None
    cpu_flags: set[str]


def check_fingerprint(fingerprint: str) -> str:
    """Return the fingerprint, or refuse what cannot be one: it becomes the name of folders."""
    if FINGERPRINT.fullmatch(fingerprint) is None:
        raise ArtifactError(f"a fingerprint is 32 digits of 0-9 and a-f, and not {fingerprint!r}")
    return fingerprint


def sha256_file(path: Path) -> str:
    """Return the digest of a file without holding it in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def list_files(stage: Path) -> dict[str, dict[str, Any]]:
    """Describe every file below a folder as the manifest does; links and devices are refused."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(stage.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(stage).as_posix()
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{name} is no plain file: an artifact holds plain files only")
        if name == MANIFEST:
            continue
        executable = bool(path.stat().st_mode & stat.S_IXUSR)
        files[name] = {
            "mode": "0755" if executable else "0644",
            "sha256": sha256_file(path),
            "size": path.stat().st_size,
        }
    return files


def library_requirements(stage: Path, planned: Iterable[str] = ()) -> dict[str, Any]:
    """Return what the ELF files of a folder ask of a host, and refuse run paths that leave the folder.

    `planned` are folders that the toolchain gives to every host that runs what it has made.
    """
    versions: list[str] = []
    needed: set[str] = set()
    own: set[str] = set()
    machines: set[str] = set()
    known = {os.path.normpath(folder) for folder in planned}
    outside: set[str] = set()
    for path in sorted(stage.rglob("*")):
        if not path.is_file() or not _elf.is_elf(path):
            continue
        elf = _elf.read(path)
        machines.add(elf.machine)
        own.add(elf.soname or path.name)
        needed.update(elf.needed)
        versions.extend(elf.versions_needed)
        name = path.relative_to(stage).as_posix()
        for part in elf.run_path:
            if part.startswith("$ORIGIN"):
                continue
            if not part.startswith(("/usr/", "/opt/")) and os.path.normpath(part) not in known:
                raise ArtifactError(
                    f"{name} looks for its libraries in {part}: a run path begins with $ORIGIN, /usr or /opt, or is "
                    "one of toolchain_result.run_path, or the artifact would only run where it was built"
                )
            outside.add(part)
    if len(machines) != 1:
        raise ArtifactError(
            f"the files are for {len(machines)} architectures ({', '.join(sorted(machines)) or 'none'}): "
            "an artifact is for one"
        )
    return {
        "architecture": machines.pop(),
        "glibc": _elf.highest(versions, "GLIBC"),
        "glibcxx": _elf.highest(versions, "GLIBCXX"),
        "libraries": sorted(needed - own),
        "run_path": sorted(outside),
    }


def pack(stage: Path, manifest: dict[str, Any], destination: Path) -> None:
    """Write the artifact of a folder; `destination` appears complete or not at all."""
    files = list_files(stage)
    if manifest.get("files") != files:
        raise ArtifactError(f"the manifest does not describe the files below {stage}: make it from list_files()")
    check_manifest(manifest)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as raw:
            # No name and no time in gzip's header: both would differ from one packing to the next.
            with (
                gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
            ):
                text = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode("utf-8")
                archive.addfile(_member(MANIFEST, len(text), 0o644), io.BytesIO(text))
                for name in sorted(files):
                    entry = files[name]
                    with (stage / name).open("rb") as stream:
                        archive.addfile(_member(name, entry["size"], int(entry["mode"], 8)), stream)
            raw.flush()
            os.fsync(raw.fileno())
        temporary.chmod(0o644)
        temporary.replace(destination)
    finally:
        if temporary.exists():
            temporary.unlink()


def _member(name: str, size: int, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = mode
    member.mtime = EPOCH
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def check_manifest(manifest: Any) -> dict[str, Any]:
    """Return the manifest, or say what is wrong with it."""
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{MANIFEST} holds a {type(manifest).__name__}: it must be a mapping")
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise ArtifactError(f"{MANIFEST} lacks {', '.join(missing)}")
    if manifest["format"] != FORMAT:
        raise ArtifactError(f"{MANIFEST} is of format {manifest['format']!r}, and this collection reads {FORMAT}")
    check_fingerprint(str(manifest["fingerprint"]))
    for name, entry in manifest["files"].items():
        check_name(name)
        if not isinstance(entry, dict) or not {"mode", "sha256", "size"} <= set(entry):
            raise ArtifactError(f"{MANIFEST} says of {name} only {entry!r}: mode, sha256 and size are needed")
        if entry["mode"] not in ("0644", "0755"):
            raise ArtifactError(f"{MANIFEST} gives {name} the mode {entry['mode']!r}: it may be 0644 or 0755")
    return manifest


def check_name(name: str) -> str:
    """Return the name of a member, or refuse one that would leave the folder it is unpacked to."""
    parts = name.split("/")
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise ArtifactError(f"the archive names a file {name!r}: names must be relative, without . and .. parts")
    return name


def read_manifest(path: Path) -> dict[str, Any]:
    """Return an artifact's manifest without reading the rest of it."""
    with _opened(path) as archive:
        return _first(path, archive)


def verify(path: Path, fingerprint: str = "") -> dict[str, Any]:
    """Read the whole artifact and compare every file with the manifest; return the manifest."""
    return _walk(path, fingerprint, None)


def unpack(path: Path, fingerprint: str, releases: Path) -> Path:
    """Verify the artifact while unpacking it into a folder beside the releases; return that folder.

    The caller looks at the folder and then calls `publish`, or removes it.
    """
    releases.mkdir(parents=True, exist_ok=True)
    staging = releases / f"{_STAGING}{check_fingerprint(fingerprint)}-{os.getpid()}"
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir()
    # Not by mkdir, whose mode the umask cuts: this folder becomes the release.
    staging.chmod(0o755)
    try:
        _walk(path, fingerprint, staging)
    except BaseException:
        shutil.rmtree(staging)
        raise
    return staging


def publish(staging: Path, releases: Path, fingerprint: str) -> Path:
    """Let an unpacked folder appear as the release, by one rename."""
    release = releases / check_fingerprint(fingerprint)
    if release.exists():
        raise ArtifactError(f"{release} is there already: a release is never written over")
    staging.rename(release)
    return release


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, mode="r:gz")
    except FileNotFoundError as exc:
        raise ArtifactError(f"there is no artifact {path}") from exc
    except (tarfile.TarError, EOFError, OSError, zlib.error) as exc:
        raise ArtifactError(f"{path} is damaged: {exc}") from exc


def _first(path: Path, archive: tarfile.TarFile) -> dict[str, Any]:
    try:
        member = archive.next()
        stream = archive.extractfile(member) if member is not None and member.name == MANIFEST else None
        if stream is None:
            raise ArtifactError(f"{path} does not begin with {MANIFEST}, so it is no artifact of this collection")
        return check_manifest(json.loads(stream.read().decode("utf-8")))
    except (tarfile.TarError, EOFError, OSError, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise ArtifactError(f"{path} is damaged: {MANIFEST} cannot be read: {exc}") from exc


def _walk(path: Path, fingerprint: str, destination: Path | None) -> dict[str, Any]:
    with _opened(path) as archive:
        manifest = _first(path, archive)
        if fingerprint and manifest["fingerprint"] != fingerprint:
            raise ArtifactError(f"{path} holds the build {manifest['fingerprint']}, and {fingerprint} was asked for")
        left = dict(manifest["files"])
        try:
            for member in archive:
                if member.name == MANIFEST:
                    continue
                entry = left.pop(check_name(member.name), None)
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise ArtifactError(f"{path} holds {member.name}, which is no plain file")
                if entry is None:
                    raise ArtifactError(f"{path} holds {member.name}, which its manifest does not name, or twice")
                _copy(stream, entry, member.name, path, destination)
            # tar ends before gzip does, and gzip's checksum is at its very end.
            rest = archive.fileobj
            while rest is not None and rest.read(_BLOCK):
                pass
        except (tarfile.TarError, EOFError, OSError, zlib.error) as exc:
            raise ArtifactError(f"{path} is damaged: {exc}") from exc
        if left:
            raise ArtifactError(f"{path} is damaged: it lacks {', '.join(sorted(left))}")
        if destination is not None:
            text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
            (destination / MANIFEST).write_text(text, encoding="utf-8")
            (destination / MANIFEST).chmod(0o644)
        return manifest


def _copy(stream: Any, entry: dict[str, Any], name: str, path: Path, destination: Path | None) -> None:
    digest = hashlib.sha256()
    target = None
    if destination is not None:
        for parent in reversed(Path(name).parents):
            folder = destination / parent
            if not folder.exists():
                folder.mkdir(mode=0o755)
                folder.chmod(0o755)
        target = (destination / name).open("wb")
    try:
        size = 0
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
            size += len(block)
            if target is not None:
                target.write(block)
        if target is not None:
            target.flush()
            os.fsync(target.fileno())
            os.fchmod(target.fileno(), int(entry["mode"], 8))
    finally:
        if target is not None:
            target.close()
    if digest.hexdigest() != entry["sha256"] or size != entry["size"]:
        raise ArtifactError(
            f"{path} is damaged: {name} has the sha256 {digest.hexdigest()}, and the manifest says {entry['sha256']}"
        )


# What a host must have


def refusals(manifest: dict[str, Any], host: Host) -> list[str]:
    """Return why an artifact cannot run on a host; an empty list where it can."""
    found: list[str] = []
    if manifest["architecture"] != host.architecture:
        return [
            (
                f"it was built for {manifest['architecture']}, and this host is {host.architecture}: "
                "build it on a machine of this architecture"
            )
        ]
    requirements = manifest["requirements"]
    glibc = requirements.get("glibc")
    if glibc and _elf.version_tuple(glibc) > _elf.version_tuple(host.glibc):
        found.append(
            f"it needs glibc {glibc} or newer, and this host has {host.glibc}: "
            "build it on this release of the distribution, or on an older one"
        )
    glibcxx = requirements.get("glibcxx")
    if glibcxx and host.glibcxx is not None and _elf.version_tuple(glibcxx) > _elf.version_tuple(host.glibcxx):
        found.append(
            f"it needs the symbols GLIBCXX_{glibcxx}, and the libstdc++ of this host ends at GLIBCXX_{host.glibcxx}: "
            "update libstdc++, or build on this release of the distribution"
        )
    flags = [flag for flag in requirements.get("cpu_flags", []) if flag not in host.cpu_flags]
    if flags:
        found.append(
            f"it was compiled for processors with {', '.join(requirements['cpu_flags'])}, and this one lacks "
            f"{', '.join(flags)}: leave {', '.join(flags)} out of llama_build_cpu_features"
        )
    return found


def read_host(root: Path = Path("/")) -> Host:
    """Describe the host that this runs on."""
    machine = os.uname().machine
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    if not libc or not libc.startswith("glibc "):
        raise ArtifactError(f"this host's C library calls itself {libc!r}: artifacts need glibc")
    cpuinfo = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return Host(machine, libc.split()[1], _glibcxx(root, machine), cpu_flags(cpuinfo))


def cpu_flags(cpuinfo: str) -> set[str]:
    """Return the instruction sets that /proc/cpuinfo names for the first processor."""
    for line in cpuinfo.splitlines():
        name, _colon, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _glibcxx(root: Path, machine: str) -> str | None:
    for folder in ("usr/lib64", "lib64", f"usr/lib/{machine}-linux-gnu", f"lib/{machine}-linux-gnu", "usr/lib", "lib"):
        library = root / folder / "libstdc++.so.6"
        if library.exists():
            return _elf.highest(_elf.read(library).versions_defined, "GLIBCXX")
    return None


# Releases


def find_releases(root: Path) -> list[str]:
    """Return the fingerprints of the releases below a root, newest first."""
    folder = root / "releases"
    if not folder.is_dir():
        return []
    found = [
        (path.stat().st_mtime_ns, path.name)
        for path in folder.iterdir()
        if FINGERPRINT.fullmatch(path.name) and path.is_dir() and (path / MANIFEST).is_file()
    ]
    return [name for _time, name in sorted(found, reverse=True)]


def current_release(root: Path) -> str | None:
    """Return the fingerprint that `current` points to."""
    link = root / "current"
    if not link.is_symlink():
        if link.exists():
            raise ArtifactError(f"{link} is no link: move it away, {link} is made by llama_install")
        return None
    return link.readlink().name


def check_release(release: Path) -> dict[str, Any]:
    """Return a release's manifest after comparing the sizes of its files with it."""
    try:
        manifest = check_manifest(json.loads((release / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as exc:
        raise ArtifactError(f"the release {release} is damaged: {exc}") from exc
    for name, entry in manifest["files"].items():
        path = release / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["size"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise ArtifactError(
                f"the release {release} is damaged: {name} {found}, and the manifest says {entry['size']} bytes; "
                "remove that folder while nothing runs from it, and install the release again"
            )
    return manifest


def switch(root: Path, fingerprint: str) -> None:
    """Point `current` at a release; every reader sees either the old or the new one."""
    release = root / "releases" / check_fingerprint(fingerprint)
    if not (release / MANIFEST).is_file():
        raise ArtifactError(f"there is no release {release} to switch to")
    temporary = root / f".current-{os.getpid()}"
    if temporary.is_symlink():
        temporary.unlink()
    temporary.symlink_to(Path("releases") / fingerprint)
    temporary.replace(root / "current")


def running_releases(root: Path, proc: Path = Path("/proc")) -> set[str]:
    """Return the fingerprints of releases that some process runs from, or has a library of."""
    prefix = f"{root.resolve() / 'releases'}/"
    found: set[str] = set()
    for process in proc.glob("[0-9]*"):
        texts = []
        try:
            texts.append(str((process / "exe").readlink()))
            texts.extend((process / "maps").read_text(encoding="utf-8", errors="replace").splitlines())
        except OSError:
            # The process has ended, or it is a thread of the kernel.
            pass
        for text in texts:
            _before, marker, rest = text.partition(prefix)
            if marker:
                found.add(rest.split("/")[0])
    return {name for name in found if FINGERPRINT.fullmatch(name)}


def to_prune(releases: list[str], keep: int, protected: Iterable[str | None]) -> list[str]:
    """Return which of the releases (newest first) go when `keep` stay; protected ones stay in any case."""
    if keep < 1:
        raise ArtifactError(f"keep is {keep}: at least 1 release must stay")
    safe = {name for name in protected if name}
    stay = [name for name in releases if name in safe]
    for name in releases:
        if name not in safe and len(stay) < keep:
            stay.append(name)
    return [name for name in releases if name not in stay]


def left_overs(releases: Path) -> list[Path]:
    """Return staging folders whose process is gone: an interrupted installation left them."""
    if not releases.is_dir():
        return []
    found = []
    for path in sorted(releases.glob(f"{_STAGING}*")):
        process = path.name.rpartition("-")[2]
        if not process.isdigit() or not Path("/proc", process).exists():
            found.append(path)
    return found
