# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes of ggml's tensor types: how many values a block holds and how many bytes it takes.

Sources: the type_traits of ggml/src/ggml.c and the block structs of ggml/src/ggml-common.h of
TheTom/llama-cpp-turboquant at 69d8e4be. The turbo types are those of that commit: turbo3 had 14 bytes
for 32 values in older commits and turbo4 has 66 bytes for 128 in newer ones, so what a cache type
weighs is a property of the build (see _builds.py), never of its name alone.
"""

from __future__ import annotations

from typing import NamedTuple


class TypeSize(NamedTuple):
    """``block`` values are stored in ``size`` bytes."""

    block: int
    size: int

    def row(self, values: int) -> int:
        """Bytes of a row of ``values`` values (ggml_row_size)."""
        return values // self.block * self.size

    @property
    def bits(self) -> float:
        """Bits for each value."""
        return self.size * 8 / self.block

    @property
    def quantized(self) -> bool:
        """Whether ggml calls the type quantized: it packs more than one value into a block."""
        return self.block > 1


# Types that tensors of a model file may have (names as gguf_info and GGUF's documentation write them).
WEIGHT_TYPES: dict[str, TypeSize] = {
    "F64": TypeSize(1, 8),
    "F32": TypeSize(1, 4),
    "F16": TypeSize(1, 2),
    "BF16": TypeSize(1, 2),
    "I8": TypeSize(1, 1),
    "I16": TypeSize(1, 2),
    "I32": TypeSize(1, 4),
    "I64": TypeSize(1, 8),
    "Q1_0": TypeSize(128, 18),
    "Q4_0": TypeSize(32, 18),
    "Q4_1": TypeSize(32, 20),
    "Q5_0": TypeSize(32, 22),
    "Q5_1": TypeSize(32, 24),
    "Q8_0": TypeSize(32, 34),
    "Q8_1": TypeSize(32, 36),
    "Q2_K": TypeSize(256, 84),
    "Q3_K": TypeSize(256, 110),
    "Q4_K": TypeSize(256, 144),
    "Q5_K": TypeSize(256, 176),
    "Q6_K": TypeSize(256, 210),
    "Q8_K": TypeSize(256, 292),
    "IQ1_S": TypeSize(256, 50),
    "IQ1_M": TypeSize(256, 56),
    "IQ2_XXS": TypeSize(256, 66),
    "IQ2_XS": TypeSize(256, 74),
    "IQ2_S": TypeSize(256, 82),
    "IQ3_XXS": TypeSize(256, 98),
    "IQ3_S": TypeSize(256, 110),
    "IQ4_NL": TypeSize(32, 18),
    "IQ4_XS": TypeSize(256, 136),
    "TQ1_0": TypeSize(256, 54),
    "TQ2_0": TypeSize(256, 66),
    "MXFP4": TypeSize(32, 17),
    "NVFP4": TypeSize(64, 36),
    "TQ3_1S": TypeSize(32, 16),
    "TQ4_1S": TypeSize(32, 20),
}

# What -ctk and -ctv accept upstream (common/arg.cpp, kv_cache_types).
PLAIN_CACHE_TYPES: dict[str, TypeSize] = {
    "f32": TypeSize(1, 4),
    "f16": TypeSize(1, 2),
    "bf16": TypeSize(1, 2),
    "q8_0": TypeSize(32, 34),
    "q4_0": TypeSize(32, 18),
    "q4_1": TypeSize(32, 20),
    "iq4_nl": TypeSize(32, 18),
    "q5_0": TypeSize(32, 22),
    "q5_1": TypeSize(32, 24),
}

# What the fork adds (ggml-common.h:286-345). The comments there still give the sizes of older commits.
TURBO_CACHE_TYPES: dict[str, TypeSize] = {
    "turbo2": TypeSize(128, 34),
    "turbo3": TypeSize(128, 50),
    "turbo4": TypeSize(128, 68),
}


def is_turbo(name: str) -> bool:
    """Whether the cache type is one of the fork's turbo types."""
    return name in TURBO_CACHE_TYPES


def pad(value: int, multiple: int) -> int:
    """Round up to a multiple (GGML_PAD)."""
    return -(-value // multiple) * multiple
