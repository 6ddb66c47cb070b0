# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For which AMD GPUs flash attention by rocWMMA is right: one rule for who plans a toolchain and for who builds.

Private to the collection: may change at any time, not for use from elsewhere.
"""

from __future__ import annotations

import re

# The rocWMMA that a ROCm release brings, the newest first. Source: ROCm's consolidated CHANGELOG.md (2.0.0 in 7.0.0,
# 2.1.0 in 7.1.1, 2.2.0 in 7.2.0; 1.7.0 in 6.4).
_BROUGHT: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...] = (
    ((7, 2, 0), (2, 2, 0)),
    ((7, 1, 1), (2, 1, 0)),
    ((7, 0, 0), (2, 0, 0)),
    ((6, 4, 0), (1, 7, 0)),
    ((0, 0, 0), (1, 0, 0)),
)

# Source of the rule: ggml/src/ggml-cuda/fattn-wmma-f16.cuh, which compiles such kernels for CDNA unless rocWMMA is
# exactly 2.0.0, for RDNA3, and for RDNA4 from rocWMMA 2 on. Elsewhere the option is built in and does nothing.
_CDNA = ("gfx908", "gfx90a", "gfx940", "gfx941", "gfx942", "gfx950")


def brought_by(rocm: str) -> tuple[int, int, int]:
    """Return the rocWMMA of a ROCm release such as 7.1.1."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", rocm)[:3])
    return next(version for since, version in _BROUGHT if (*numbers, 0, 0, 0)[:3] >= since)


def problem(target: str, version: tuple[int, int, int]) -> str:
    """Say why flash attention by that rocWMMA is wrong on a GPU; an empty string where it is right."""
    name = target.partition(":")[0].lower()
    shown = ".".join(str(part) for part in version)
    if name in _CDNA:
        if version == (2, 0, 0):
            return f"rocWMMA {shown} gives wrong results on CDNA ({name}), other releases do not"
        return ""
    if name.startswith("gfx11"):
        return ""
    if name.startswith("gfx12"):
        return "" if version >= (2, 0, 0) else f"rocWMMA {shown} does not know RDNA4 ({name}), 2.0 and newer do"
    return f"{name} has no matrix instructions, so rocWMMA cannot serve it"
