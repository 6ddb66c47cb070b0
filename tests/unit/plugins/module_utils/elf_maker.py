# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write small ELF files that say of themselves what a test wants."""

from __future__ import annotations

import struct
from collections.abc import Sequence

MACHINE = {"x86_64": 62, "aarch64": 183}


def make_elf(
    machine: str = "x86_64",
    soname: str = "",
    needed: Sequence[str] = (),
    run_path: str = "",
    versions_needed: dict[str, Sequence[str]] | None = None,
    versions_defined: Sequence[str] = (),
    order: str = "<",
) -> bytes:
    """Return a 64-bit ELF file whose virtual addresses are its file offsets."""
    strings = bytearray(b"\0")

    def put(text: str) -> int:
        position = len(strings)
        strings.extend(text.encode() + b"\0")
        return position

    needs = [put(name) for name in needed]
    tags: list[tuple[int, int]] = [(1, place) for place in needs]
    if soname:
        tags.append((14, put(soname)))
    if run_path:
        tags.append((29, put(run_path)))

    verneed = bytearray()
    wanted = list((versions_needed or {}).items())
    for index, (library, versions) in enumerate(wanted):
        last = index == len(wanted) - 1
        following = 0 if last else 16 + 16 * len(versions)
        verneed += struct.pack(order + "HHIII", 1, len(versions), put(library), 16, following)
        for number, version in enumerate(versions):
            step = 0 if number == len(versions) - 1 else 16
            verneed += struct.pack(order + "IHHII", 0, 0, 2, put(version), step)
    verdef = bytearray()
    for index, version in enumerate(versions_defined):
        following = 0 if index == len(versions_defined) - 1 else 28
        verdef += struct.pack(order + "HHHHIII", 1, 0, index + 1, 1, 0, 20, following)
        verdef += struct.pack(order + "II", put(version), 0)

    begin = 64 + 2 * 56
    string_place = begin
    verneed_place = string_place + len(strings)
    verdef_place = verneed_place + len(verneed)
    dynamic_place = verdef_place + len(verdef)
    tags.append((5, string_place))
    if verneed:
        tags += [(0x6FFFFFFE, verneed_place), (0x6FFFFFFF, len(wanted))]
    if verdef:
        tags += [(0x6FFFFFFC, verdef_place), (0x6FFFFFFD, len(versions_defined))]
    tags.append((0, 0))
    dynamic = b"".join(struct.pack(order + "QQ", tag, value) for tag, value in tags)
    total = dynamic_place + len(dynamic)

    header = b"\x7fELF" + bytes([2, 1 if order == "<" else 2, 1]) + bytes(9)
    header += struct.pack(order + "HHIQQQIHHHHHH", 3, MACHINE[machine], 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack(order + "IIQQQQQQ", 1, 5, 0, 0, 0, total, total, 4096)
    place = struct.pack(order + "IIQQQQQQ", 2, 6, dynamic_place, dynamic_place, 0, len(dynamic), len(dynamic), 8)
    return header + load + place + bytes(strings) + bytes(verneed) + bytes(verdef) + dynamic
