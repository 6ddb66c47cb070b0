#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a small channel of conda packages: python3 make_channel.py FOLDER DESCRIPTION

DESCRIPTION is a JSON file, a list of packages with name, version and, where they are not as usual, build, subdir,
depends and constrains. Each installs share/NAME, which holds its version; what the channel has already stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

# As in micromamba, beside this file.
sys.path.append("/srv/rattler")

from rattler.index import index_fs


def member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))


def pack(folder: Path, package: dict) -> None:
    name, version, build = package["name"], package["version"], package.get("build", "h0_0")
    subdir = package.get("subdir", "noarch")
    path, content = f"share/{name}", f"{version}\n".encode()
    index = {
        "name": name,
        "version": version,
        "build": build,
        "build_number": 0,
        "subdir": subdir,
        "depends": package.get("depends", []),
        "constrains": package.get("constrains", []),
        **({"noarch": "generic"} if subdir == "noarch" else {}),
    }
    entry = {
        "_path": path,
        "path_type": "hardlink",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_in_bytes": len(content),
    }
    place = folder / subdir
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place / f"{name}-{version}-{build}.tar.bz2", "w:bz2") as archive:
        member(archive, "info/index.json", json.dumps(index).encode())
        member(archive, "info/paths.json", json.dumps({"paths": [entry], "paths_version": 1}).encode())
        member(archive, "info/files", f"{path}\n".encode())
        member(archive, path, content)


def main(folder: str, description: str) -> None:
    root = Path(folder)
    # A channel has this folder, be it empty.
    (root / "noarch").mkdir(parents=True, exist_ok=True)
    for package in json.loads(Path(description).read_text(encoding="utf-8")):
        pack(root, package)
    asyncio.run(index_fs(root, write_zst=False, write_shards=False, force=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Past the interpreter's end: a thread of rattler that still lets go of it aborts the process (seen under load).
    sys.stdout.flush()
    os._exit(0)
