#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print which GPUs a compiled CUDA file holds machine code for: `sm_89 BYTES`, one line each.

usage: fatbin.py OBJECT
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

# fatbinary_section.h of the CUDA toolkit: a container begins with magic, version, header size and size of what
# follows. Entries and their fields as binutils' users and NVIDIA's cuobjdump show them.
CONTAINER = struct.Struct("<IHHQ")
MAGIC = 0xBA55ED50
ENTRY = struct.Struct("<HHIQ12xI")
ELF = 2


def main() -> None:
    data = Path(sys.argv[1]).read_bytes()
    begin = data.find(struct.pack("<I", MAGIC))
    while begin >= 0:
        _magic, _version, header, size = CONTAINER.unpack_from(data, begin)
        at, end = begin + header, begin + header + size
        while at < end:
            kind, _version, skip, payload, architecture = ENTRY.unpack_from(data, at)
            print(f"{'sm' if kind == ELF else 'compute'}_{architecture} {payload}")
            at += skip + payload
        begin = data.find(struct.pack("<I", MAGIC), end)


if __name__ == "__main__":
    main()
