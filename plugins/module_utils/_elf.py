# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what an ELF file needs: libraries, symbol versions, run path, machine.

Private to the collection: it may change at any time. Standard library only, because the build job
runs it on the builder outside Ansible, and because hosts that receive artifacts have no binutils.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

MAGIC = b"\x7fELF"

# e_machine to the name that `uname -m` prints there.
MACHINES = {3: "i686", 21: "ppc64le", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}

_PT_LOAD = 1
_PT_DYNAMIC = 2
_DT_NEEDED = 1
_DT_STRTAB = 5
_DT_SONAME = 14
_DT_RPATH = 15
_DT_RUNPATH = 29
_DT_VERDEF = 0x6FFFFFFC
_DT_VERDEFNUM = 0x6FFFFFFD
_DT_VERNEED = 0x6FFFFFFE
_DT_VERNEEDNUM = 0x6FFFFFFF


class ElfError(ValueError):
    """The bytes are no ELF file that this reader understands."""


class Elf(NamedTuple):
    """What one ELF file says of itself."""

    machine: str
    soname: str | None
    needed: list[str]
    run_path: list[str]
    # Symbol versions asked of other libraries, and versions that this library offers.
    versions_needed: list[str]
    versions_defined: list[str]


def is_elf(path: Path) -> bool:
    """Say whether the file begins as an ELF file does."""
    with path.open("rb") as stream:
        return stream.read(4) == MAGIC


def read(path: Path) -> Elf:
    """Read one ELF file."""
    try:
        return parse(path.read_bytes())
    except (ElfError, struct.error, KeyError, OverflowError, ValueError) as exc:
        raise ElfError(f"{path}: {exc}") from exc


def parse(data: bytes) -> Elf:
    """Read the dynamic section of a 64-bit ELF file."""
    if data[:4] != MAGIC:
        raise ElfError("no ELF file: the first four bytes are not 7f 45 4c 46")
    if len(data) < 64:
        raise ElfError(f"cut short: {len(data)} bytes, and the header alone has 64")
    if data[4] != 2:
        raise ElfError("a 32-bit ELF file: only 64-bit files can be read")
    order = {1: "<", 2: ">"}.get(data[5])
    if order is None:
        raise ElfError(f"byte order {data[5]} is neither little (1) nor big (2)")

    (machine,) = struct.unpack_from(order + "H", data, 18)
    (table,) = struct.unpack_from(order + "Q", data, 32)
    size, count = struct.unpack_from(order + "HH", data, 54)

    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    for index in range(count):
        kind, _flags, offset, address, _physical, length = struct.unpack_from(
            order + "IIQQQQ", data, table + index * size
        )
        if kind == _PT_LOAD:
            loads.append((address, offset, length))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, length)

    name = MACHINES.get(machine, f"e_machine {machine}")
    if dynamic is None:
        return Elf(name, None, [], [], [], [])

    def place(address: int) -> int:
        for start, offset, length in loads:
            if start <= address < start + length:
                return address - start + offset
        raise ElfError(f"address {address:#x} lies in no loaded segment")

    tags: dict[int, list[int]] = {}
    for position in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from(order + "QQ", data, position)
        if tag == 0:
            break
        tags.setdefault(tag, []).append(value)

    if _DT_STRTAB not in tags:
        raise ElfError("the dynamic section has no string table")
    strings = place(tags[_DT_STRTAB][0])

    def text(offset: int) -> str:
        end = data.index(b"\0", strings + offset)
        return data[strings + offset : end].decode("utf-8", "surrogateescape")

    needed_versions: list[str] = []
    if _DT_VERNEED in tags:
        position = place(tags[_DT_VERNEED][0])
        for _dummy in range(tags[_DT_VERNEEDNUM][0]):
            _version, entries, _file, first, following = struct.unpack_from(order + "HHIII", data, position)
            inner = position + first
            for _entry in range(entries):
                _hash, _flags, _other, label, step = struct.unpack_from(order + "IHHII", data, inner)
                needed_versions.append(text(label))
                inner += step
            if following == 0:
                break
            position += following

    defined_versions: list[str] = []
    if _DT_VERDEF in tags:
        position = place(tags[_DT_VERDEF][0])
        for _dummy in range(tags[_DT_VERDEFNUM][0]):
            _version, _flags, _index, _names, _hash, first, following = struct.unpack_from(
                order + "HHHHIII", data, position
            )
            (label,) = struct.unpack_from(order + "I", data, position + first)
            defined_versions.append(text(label))
            if following == 0:
                break
            position += following

    paths = [text(value) for tag in (_DT_RPATH, _DT_RUNPATH) for value in tags.get(tag, [])]
    return Elf(
        machine=name,
        soname=text(tags[_DT_SONAME][0]) if _DT_SONAME in tags else None,
        needed=[text(value) for value in tags.get(_DT_NEEDED, [])],
        run_path=[part for path in paths for part in path.split(":") if part],
        versions_needed=sorted(set(needed_versions)),
        versions_defined=sorted(set(defined_versions)),
    )


def version_tuple(version: str) -> tuple[int, ...]:
    """Turn `2.34` into (2, 34), for comparing."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)*", version) is None:
        raise ValueError(f"a version is numbers with dots between them, such as 2.34, and not {version!r}")
    return tuple(int(part) for part in version.split("."))


def highest(versions: list[str], family: str) -> str | None:
    """Return the highest `family_X.Y` among symbol versions, as `X.Y`; names such as GLIBC_PRIVATE do not count."""
    found = [
        match.group(1)
        for match in (re.fullmatch(re.escape(family) + r"_([0-9]+(?:\.[0-9]+)*)", name) for name in versions)
        if match is not None
    ]
    return max(found, key=version_tuple) if found else None
