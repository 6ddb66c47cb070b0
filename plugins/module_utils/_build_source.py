# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at source trees: digest of a folder, safe unpacking of an archive, the folder that CMake starts from.

Private to the collection: it may change at any time. Standard library only, because the build job
runs it on the builder outside Ansible.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

_PROJECT = re.compile(r"^\s*project\s*\(\s*\"?llama\.cpp\"?[\s)]", re.MULTILINE | re.IGNORECASE)
_BLOCK = 1024 * 1024

# How deep below the top of an archive its llama.cpp may lie (vendor/llama.cpp is 3 with the archive's own folder).
DEPTH = 4


class SourceError(ValueError):
    """A source tree is not what it must be."""


def walk(top: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file and link below a folder in one order, without git's own data."""
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if name != ".git")
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links]
        for name in sorted([*files, *links]):
            if name != ".git":
                yield (here / name).relative_to(top).as_posix(), here / name


def digest_directory(top: Path) -> str:
    """Return a digest of names, contents, execute bits and links below a folder."""
    if not top.is_dir():
        raise SourceError(f"source path {top} is no folder on the builder")
    total = hashlib.sha256()
    for name, path in walk(top):
        if path.is_symlink():
            kind, content = "link", str(path.readlink()).encode("utf-8", "surrogateescape")
            digest = hashlib.sha256(content).hexdigest()
        elif path.is_file():
            kind = "program" if path.stat().st_mode & stat.S_IXUSR else "file"
            digest = sha256_file(path)
        else:
            raise SourceError(f"{path} is neither a file nor a link: a source holds nothing else")
        total.update(f"{kind} {digest} {name}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def sha256_file(path: Path) -> str:
    """Return the digest of a file without holding it in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def copy_directory(top: Path, destination: Path) -> None:
    """Copy a source folder, links as links."""
    destination.mkdir(parents=True)
    for name, path in walk(top):
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            check_link(name, str(path.readlink()))
            target.symlink_to(path.readlink())
        else:
            shutil.copy2(path, target)


def check_name(name: str) -> str:
    """Return a member's name, or refuse one that would leave the folder it is unpacked to."""
    parts = name.rstrip("/").split("/")
    if not name or name.startswith("/") or any(part in ("", "..") for part in parts) or "\\" in name:
        raise SourceError(f"the archive names {name!r}, which leaves the folder it is unpacked to")
    return name


def check_link(name: str, target: str) -> None:
    """Refuse a link that leads out of the tree."""
    depth = len(name.split("/")) - 1
    for part in target.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0 or target.startswith("/"):
            raise SourceError(f"the source links {name} to {target}, which leads out of its folder")


def unpack(archive: Path, destination: Path) -> None:
    """Unpack a tar or zip archive; names and links that leave the folder, and devices, are refused."""
    destination.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    check_name(name)
                packed.extractall(destination)
            return
        with tarfile.open(archive, mode="r:*") as packed_tar:
            _unpack_tar(packed_tar, destination)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as exc:
        raise SourceError(f"{archive} cannot be unpacked: {exc}") from exc


def _unpack_tar(packed: tarfile.TarFile, destination: Path) -> None:
    for member in packed:
        # Archives of git carry a comment before the first file; tarfile keeps it out of this list.
        check_name(member.name)
        target = destination / member.name
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or target.exists():
            raise SourceError(f"the archive names {member.name} twice")
        # A link made before must not carry a later file out of the folder.
        if destination.resolve() not in (target.parent.resolve(), *target.parent.resolve().parents):
            raise SourceError(f"the archive names {member.name!r}, which leaves the folder it is unpacked to")
        if member.issym():
            check_link(member.name, member.linkname)
            target.symlink_to(member.linkname)
        elif member.isreg():
            stream = packed.extractfile(member)
            if stream is None:
                raise SourceError(f"the archive holds no bytes for {member.name}")
            with target.open("wb") as out:
                shutil.copyfileobj(stream, out, _BLOCK)
            target.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
        else:
            raise SourceError(f"the archive holds {member.name}, which is neither file, folder nor symbolic link")


def is_llama(folder: Path) -> bool:
    """Say whether a folder's CMakeLists.txt begins the project llama.cpp."""
    lists = folder / "CMakeLists.txt"
    return lists.is_file() and _PROJECT.search(lists.read_text(encoding="utf-8", errors="replace")) is not None


def find_root(top: Path, subdir: str) -> Path:
    """Return the folder that CMake starts from: the one named, the top, or the only one below it."""
    if subdir:
        if not is_llama(top / subdir):
            raise SourceError(f"source subdir {subdir!r} has no CMakeLists.txt that names the project llama.cpp")
        return top / subdir
    if is_llama(top):
        return top
    found = []
    for folder, folders, _files in os.walk(top):
        here = Path(folder)
        depth = len(here.relative_to(top).parts)
        folders[:] = sorted(folders) if depth < DEPTH else []
        if is_llama(here):
            found.append(here)
            folders[:] = []
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(top)) for path in found)
        raise SourceError(
            f"the source has {len(found)} folders whose CMakeLists.txt names the project llama.cpp"
            f"{f' ({listed})' if listed else ''}: exactly one is needed, or llama_build_source.subdir must name it"
        )
    return found[0]
