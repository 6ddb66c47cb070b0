# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold for any configuration."""

from __future__ import annotations

from unittest import mock

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _compute, _memory
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _ggml as gg
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from . import oracle

MODELS = ("llama31-8b-real", "gemma4-26b-a4b-real", "qwen36-27b-real", "granite-4.0-h-tiny-real")
# From the most bits to the fewest.
TYPES = ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "turbo4", "turbo3", "turbo2")
OFF = {"TURBO_AUTO_ASYMMETRIC": "0", "TURBO_LAYER_ADAPTIVE": "0"}
QUIET = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

models = st.sampled_from(MODELS)
contexts = st.integers(1, 1024).map(lambda n: 256 * n)


def kv(model, **options):
    return _memory.kv_cache_bytes(oracle.loaded(model), options, env=OFF)


@QUIET
@given(models, contexts, contexts, st.sampled_from(TYPES), st.booleans())
def test_more_context_never_takes_less_cache(model, a, b, kind, unified):
    low, high = sorted((a, b))
    options = {"cache_type_k": kind, "cache_type_v": kind, "parallel": 2, "kv_unified": unified}
    assert kv(model, ctx_size=low, **options) <= kv(model, ctx_size=high, **options)


@QUIET
@given(models, contexts, st.integers(1, 16), st.integers(1, 16))
def test_more_slots_of_one_cache_never_take_less(model, ctx, a, b):
    sizes = [kv(model, ctx_size=ctx, parallel=n, kv_unified=True) for n in sorted((a, b))]
    assert sizes[0] <= sizes[1]


@QUIET
@given(models, st.integers(1, 16).map(lambda n: 4096 * n), st.integers(0, 4), st.integers(0, 4))
def test_more_slots_that_divide_the_context_never_take_less(model, ctx, a, b):
    sizes = [kv(model, ctx_size=ctx, parallel=2**n, kv_unified=False) for n in sorted((a, b))]
    assert sizes[0] <= sizes[1]


@QUIET
@given(models, contexts, st.integers(1, 16))
def test_slots_of_their_own_never_take_less_than_one(model, ctx, slots):
    """Among themselves they may: 1024 cells are 3 x 512 for three slots and 4 x 256 for four, each rounded up."""
    assert kv(model, ctx_size=ctx, parallel=1) <= kv(model, ctx_size=ctx, parallel=slots, kv_unified=False)


@QUIET
@given(models, contexts, st.integers(0, len(TYPES) - 1), st.integers(0, len(TYPES) - 1))
def test_more_bits_never_take_less_cache(model, ctx, a, b):
    ordered = sorted((a, b))
    sizes = [kv(model, ctx_size=ctx, parallel=1, cache_type_k=TYPES[i], cache_type_v=TYPES[i]) for i in ordered]
    assert sizes[0] >= sizes[1]


def whole(setup):
    """The compute buffers of the graph with all its layers and its own numbers: no layer folded, no unknowns."""
    caches = {cache.kind: cache.cells for cache in setup.caches}
    known = gg.monomials(0, caches.get("base", 0), caches.get("swa", 0))
    template = _compute.lay_out(setup, _compute._Support(setup, gg.Judgements(known)))
    return _compute._result(setup, template, known).bytes


# 14 tokens of each of 3 sequences: recurrent states work on fewer rows than an operation needs to be offloaded
@example("qwen36-27b-real", 256, ("f16", "f16"), 40, 3, False, 1, 7, "cuda", {})
# without flash attention the device lacks the product of a V in turbo4: each layer changes the device
@example("gemma4-26b-a4b-tiny", 20224, ("q4_0", "turbo4"), 512, 3, True, 1, -1, "vulkan", {})
# per-layer inputs are made with the operations that the first layer leaves to the second
@example("gemma4-e4b-tiny", 8192, ("f16", "f16"), 512, 1, True, 0, -1, "cuda", {})
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted({row["model"] for row in oracle.rows()})),
    st.integers(1, 400).map(lambda n: 256 * n),
    st.sampled_from([("f16", "f16"), ("f32", "f16"), ("q8_0", "turbo4"), ("turbo3", "turbo3"), ("f16", "turbo2")]),
    st.sampled_from([1, 24, 40, 512, 2048]),
    st.sampled_from([1, 3, 4]),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([-1, -1, 7, 20]),
    st.sampled_from(["cuda", "cuda", "vulkan"]),
    st.sampled_from([{}, {}, {"n_cpu_moe": 5}, {"kv_offload": False}, {"flash_attn": "off"}, {"split_mode": "none"}]),
)
def test_a_folded_graph_with_unknowns_equals_the_whole_one(
    model, ctx, pair, batch, slots, unified, cards, layers, backend, more
):
    gpus = [{"name": f"GPU{i}", "backend": backend, "total_bytes": 1 << 40} for i in range(cards)]
    options = {"ctx_size": ctx, "parallel": slots, "kv_unified": unified, "ubatch_size": batch, "n_gpu_layers": layers}
    options.update(cache_type_k=pair[0], cache_type_v=pair[1], **more)
    made = []
    original = _compute.compute_buffers

    def watch(setup):
        made.append((setup, original(setup)))
        return made[-1][1]

    with mock.patch.object(_compute, "compute_buffers", watch):
        _memory.memory_budget(oracle.loaded(model), gpus, options)
    setup, got = made[0]
    if not got.error:
        assert got.bytes == whole(setup)


CUDA = [{"name": "CUDA0", "backend": "cuda", "total_bytes": 1 << 40}]
LLVMPIPE = [{"name": "Vulkan0", "backend": "vulkan", "max_storage_buffer_range": oracle.LLVMPIPE_STORAGE_RANGE}]


@pytest.mark.parametrize(
    ("model", "gpus", "asked"),
    [
        # without flash attention V is transposed by a copy in its own type
        ("llama31-8b-real", CUDA, [(12544, "q8_0", "q5_1"), (12544, "q8_0", "q4_0"), (12288, "q8_0", "q4_0")]),
        # the first cache is larger than what the device can bind, the second is not
        ("gemma3-27b-real", LLVMPIPE, [(131072, "turbo4", "turbo4"), (8448, "turbo4", "turbo4")]),
        ("gpt-oss-20b-real", CUDA, [(4096, "turbo4", "turbo4"), (4352, "turbo4", "turbo4"), (4352, "f16", "f16")]),
    ],
)
def test_a_result_does_not_depend_on_what_was_asked_before(model, gpus, asked):
    def budget(loaded, ctx, type_k, type_v):
        options = {"ctx_size": ctx, "cache_type_k": type_k, "cache_type_v": type_v, "program": "llama-fit-params"}
        return _memory.memory_budget(loaded, gpus, options)

    header = oracle.header(model)
    one = _memory.Model(header)
    together = [budget(one, *question) for question in asked]
    assert together == [budget(_memory.Model(header), *question) for question in asked]


@pytest.mark.parametrize("model", MODELS)
def test_more_context_never_takes_less_of_a_card(model):
    gpu = [{"name": "CUDA0", "backend": "cuda", "total_bytes": 1 << 40}]
    last = 0
    for ctx in (8192, 16384, 32768, 65536, 131072):
        options = {"ctx_size": ctx, "parallel": 1, "program": "llama-fit-params"}
        total = _memory.memory_budget(oracle.loaded(model), gpu, options)["devices"]["CUDA0"]["total"]
        assert total >= last
        last = total
