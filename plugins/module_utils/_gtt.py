# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much system memory an integrated GPU may map, and the kernel arguments that say so.

Private to the collection: may change at any time, not for use from elsewhere.

The kernel takes the limit of its graphics translation table (GTT) from C(ttm.pages_limit), in pages of 4 KiB.
C(amdgpu.gttsize), in MiB, is older, deprecated, and wins where both are given; TTM refuses to fill past
C(ttm.pages_limit) all the same, so the two must name the same size. Source: the text of Mario Limonciello's patch
to amdgpu_ttm.c of January 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# A page is 4 KiB on every machine that has such a GPU (x86-64): 256 pages a MiB.
PAGES_PER_MIB = 256
PAGE_BYTES = MIB // PAGES_PER_MIB

# GTT pages are pinned and belong to no process that the OOM killer can see: the host freezes instead of killing.
MIN_RESERVE_BYTES = 8 * GIB
RESERVE_PERCENT = 10

# Below this share, or this much, left to the host, amd-ttm (amd-debug-tools 0.2.22) warns.
WARN_RESERVE_BYTES = 4 * GIB

GTTSIZE_ARG = "amdgpu.gttsize"
PAGES_ARG = "ttm.pages_limit"
POOL_ARG = "ttm.page_pool_size"

# Arguments that guides give and that the kernel of a distribution ignores without a word.
IGNORED_ARGS = {
    "amdgpu.gtt_size": f"no such parameter exists, the name is {GTTSIZE_ARG}",
    "amdttm.pages_limit": f"it belongs to the out-of-tree amdgpu-dkms, the kernel's own module reads {PAGES_ARG}",
    "amdttm.page_pool_size": f"it belongs to the out-of-tree amdgpu-dkms, the kernel's own module reads {POOL_ARG}",
}

# Pairs (gttsize in MiB, pages_limit) that guides hand on and that contradict each other, with where they stand.
CUSTOMARY_WRONG_PAIRS = (
    (49152, 12288000, "guides that compute pages as GB * 1024 * 1024 / 4.096"),
    (110592, 27648000, "guides that compute pages as GB * 1024 * 1024 / 4.096"),
    (120000, 31457280, "lhl/strix-halo-testing"),
)


def human_gib(size: int) -> str:
    """Return bytes as GiB, exact where that is short, and never without the unit."""
    gib = size / GIB
    return f"{int(gib)} GiB" if gib == int(gib) else f"{gib:.3f} GiB"


def _number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is a number of bytes, got {type(value).__name__}: {value!r}")
    return value


def default_reserve(ram_bytes: int) -> int:
    """Return what the host keeps unless told otherwise: the larger of 8 GiB and a tenth of its memory."""
    return max(MIN_RESERVE_BYTES, -(-ram_bytes * RESERVE_PERCENT // 100))


def _pair_text(gttsize: int, pages: int) -> str:
    """Say what the kernel makes of a pair that disagrees."""
    limit = pages / PAGES_PER_MIB
    shown = f"{int(limit)}" if limit == int(limit) else f"{limit:.3f}"
    text = (
        f"{GTTSIZE_ARG}={gttsize} and {PAGES_ARG}={pages} disagree: {gttsize} MiB is "
        f"{human_gib(gttsize * MIB)} and needs {PAGES_ARG}={gttsize * PAGES_PER_MIB}, "
        f"while {pages} pages are {shown} MiB ({human_gib(pages * PAGE_BYTES)})"
    )
    if gttsize * PAGES_PER_MIB > pages:
        return f"{text}; the kernel shows the larger size and refuses to fill it past the smaller"
    return f"{text}; the kernel takes {GTTSIZE_ARG}, so the rest of the page limit is never used by the GPU"


def _present_arguments(present: str | Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments of a command line, or of a mapping; of a repeated one the last, as the kernel does."""
    if isinstance(present, str):
        pairs = (word.partition("=") for word in present.split())
        return {name: value.strip('"') for name, _separator, value in pairs}
    if not isinstance(present, Mapping):
        raise ValueError(
            "present is a kernel command line or a mapping of argument names to values, "
            f"got {type(present).__name__}: {present!r}"
        )
    return {str(name): str(value) for name, value in present.items()}


def pair_warnings(present: str | Mapping[str, Any], wanted: Mapping[str, str]) -> list[str]:
    """Say what is wrong with the memory arguments that a host, or a guide, has."""
    arguments = _present_arguments(present)
    found = []
    for name, why in IGNORED_ARGS.items():
        if name in arguments:
            found.append(f"{name}={arguments[name]} has no effect: {why}")

    numbers: dict[str, int] = {}
    for name in (GTTSIZE_ARG, PAGES_ARG):
        if name not in arguments:
            continue
        try:
            numbers[name] = int(arguments[name], 0)
        except ValueError:
            found.append(f"{name}={arguments[name]} is no number, so the kernel ignores it")

    gttsize, pages = numbers.get(GTTSIZE_ARG), numbers.get(PAGES_ARG)
    if gttsize == -1:  # the driver's default: the size follows ttm.pages_limit
        gttsize = None
    if gttsize is not None and pages is not None and gttsize * PAGES_PER_MIB != pages:
        found.append(_pair_text(gttsize, pages))
    elif gttsize is not None and pages is None:
        found.append(
            f"{GTTSIZE_ARG}={gttsize} without {PAGES_ARG} is not enough: TTM refuses to fill the table past its own "
            "limit, which is half of the memory by default"
        )
    if pages is not None and PAGES_ARG in wanted and pages != int(wanted[PAGES_ARG]):
        found.append(f"{PAGES_ARG}={pages} is set on the host, the wanted value is {wanted[PAGES_ARG]}")
    return found


def gtt_budget(
    ram_bytes: int,
    wanted_bytes: int | None = None,
    reserve_bytes: int | None = None,
    gttsize: bool = False,
    page_pool: bool = False,
    present: str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the size of the GTT and the kernel arguments for it, or raise ValueError where the host would starve.

    Without wanted_bytes the size is all that the reserve leaves. A wanted size is rounded up to a whole MiB, because
    the arguments know no smaller step, but never past the limit.
    """
    ram = _number("ram_bytes", ram_bytes)
    if ram <= 0:
        raise ValueError(f"ram_bytes is the memory of the host and must be positive, got {ram}")
    reserve = default_reserve(ram) if reserve_bytes is None else _number("reserve_bytes", reserve_bytes)
    if reserve < 0:
        raise ValueError(f"reserve_bytes is what the host keeps and cannot be negative, got {reserve}")
    limit = (ram - reserve) // MIB * MIB
    if limit <= 0:
        raise ValueError(
            f"nothing is left to map: the host has {human_gib(ram)} ({ram} bytes) and the reserve is "
            f"{human_gib(reserve)} ({reserve} bytes); give a reserve_bytes below the memory of the host"
        )

    warnings = []
    if wanted_bytes is None:
        size = limit
    else:
        wanted = _number("wanted_bytes", wanted_bytes)
        if wanted <= 0:
            raise ValueError(
                f"wanted_bytes must be positive, got {wanted}; omit it to take all that the reserve leaves"
            )
        if wanted > ram - reserve:
            raise ValueError(
                f"a GTT of {human_gib(wanted)} ({wanted} bytes) is above the {human_gib(limit)} ({limit} bytes) that "
                f"this host can give: it has {human_gib(ram)} and keeps {human_gib(reserve)}. Its pages are pinned and "
                "hidden from the OOM killer, so the host would freeze; want less, or lower reserve_bytes knowingly"
            )
        size = min(-(-wanted // MIB) * MIB, limit)

    gttsize_mib = size // MIB
    pages_limit = gttsize_mib * PAGES_PER_MIB
    left = ram - size
    if left < WARN_RESERVE_BYTES or left * 100 < ram * RESERVE_PERCENT:
        warnings.append(
            f"the host keeps {human_gib(left)} of {human_gib(ram)}: below 4 GiB, or a tenth of the memory, a full GTT "
            "freezes it"
        )
    if size < ram // 2:
        warnings.append(
            f"{human_gib(size)} is less than half of the memory ({human_gib(ram // 2)}), which is what the kernel "
            "gives without any argument"
        )
    for customary_mib, customary_pages, source in CUSTOMARY_WRONG_PAIRS:
        if customary_mib == gttsize_mib or customary_pages == pages_limit:
            warnings.append(f"beware of the customary pair ({source}): {_pair_text(customary_mib, customary_pages)}")

    kernel_args = {PAGES_ARG: str(pages_limit)}
    if gttsize:
        kernel_args[GTTSIZE_ARG] = str(gttsize_mib)
        warnings.append(
            f"{GTTSIZE_ARG} is deprecated: kernels from about 6.14 warn about it and will drop it, "
            f"{PAGES_ARG} alone sets the same size there"
        )
    if page_pool:
        kernel_args[POOL_ARG] = str(pages_limit)
    if present is not None:
        warnings.extend(pair_warnings(present, kernel_args))
    return {
        "gtt_bytes": size,
        "gttsize_mib": gttsize_mib,
        "pages_limit": pages_limit,
        "kernel_args": kernel_args,
        "warnings": warnings,
    }


def limit_to_come(info: Mapping[str, Any], gib: Any = "auto", reserve_gib: Any = "auto") -> int:
    """Return the limit in bytes that the role gtt_memory gives a host, as gpu_info found it.

    ``gib`` and ``reserve_gib`` are the role's variables. For ``plan`` it is the most that the host can give: the plan
    decides then how much of it is taken. Raises ValueError where the role would refuse.
    """
    ram = info["memory"]["ram_total_bytes"]
    reserve = None if str(reserve_gib) == "auto" else int(float(reserve_gib) * GIB)
    most: int = gtt_budget(ram, reserve_bytes=reserve)["gtt_bytes"]
    if str(gib) == "plan":
        return most
    if str(gib) != "auto":
        return int(gtt_budget(ram, wanted_bytes=int(float(gib) * GIB), reserve_bytes=reserve)["gtt_bytes"])
    # As the role does: a kernel that keeps a few MiB more or less for itself asks for no reboot.
    words = _present_arguments((info.get("kernel") or {}).get("cmdline") or "")
    running = words.get(PAGES_ARG, "0")
    running_bytes = int(running) * PAGE_BYTES if running.isdigit() else 0
    return running_bytes if most - 256 * MIB <= running_bytes <= most else most


def with_limit(info: Mapping[str, Any], gtt_bytes: int) -> dict[str, Any]:
    """Return what gpu_info will find once the kernel has been started with a limit."""
    gpus = [
        {**gpu, "gtt_total_bytes": gtt_bytes} if gpu.get("integrated") and gpu.get("vendor") == "amd" else dict(gpu)
        for gpu in info["gpus"]
    ]
    memory = {**info["memory"], "gtt_limit_bytes": gtt_bytes, "ttm_pages_limit": gtt_bytes // PAGE_BYTES}
    return {**info, "gpus": gpus, "memory": memory}


def limit_now(info: Mapping[str, Any]) -> int | None:
    """Return the limit in bytes that an AMD GPU without memory of its own has now; None where there is no such GPU."""
    found = [
        gpu["gtt_total_bytes"]
        for gpu in info["gpus"]
        if gpu.get("integrated") and gpu.get("vendor") == "amd" and gpu.get("gtt_total_bytes") is not None
    ]
    pages = info["memory"].get("ttm_pages_limit")
    return min([max(found), *([pages * PAGE_BYTES] if pages else [])]) if found else None
