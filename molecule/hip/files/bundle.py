#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print which GPUs a compiled HIP file holds machine code for: `gfx1151 BYTES`, one line each.

usage: bundle.py OBJECT
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

# https://clang.llvm.org/docs/ClangOffloadBundler.html, "Bundled Binary File Layout": magic, number of entries, and for
# each its place, its size, and the length of its name before the name.
MAGIC = b"__CLANG_OFFLOAD_BUNDLE__"
ENTRY = struct.Struct("<QQQ")
ELF = b"\x7fELF"


def main() -> None:
    data = Path(sys.argv[1]).read_bytes()
    begin = data.find(MAGIC)
    while begin >= 0:
        (count,) = struct.unpack_from("<Q", data, begin + len(MAGIC))
        at = begin + len(MAGIC) + 8
        for _number in range(count):
            offset, size, length = ENTRY.unpack_from(data, at)
            name = data[at + ENTRY.size : at + ENTRY.size + length].decode("ascii")
            at += ENTRY.size + length
            kind, _, gpu = name.rpartition("--")
            if kind.startswith("hip") and data[begin + offset : begin + offset + 4] == ELF:
                print(f"{gpu} {size}")
        begin = data.find(MAGIC, at)


if __name__ == "__main__":
    main()
