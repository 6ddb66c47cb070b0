# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute buffers: what the graph's intermediate results take on each device.

llama_context::sched_reserve builds the graph of one micro-batch and lets the allocator lay it out. So does
this: _graphs.py builds it, _ggml.py splits and allocates it.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _ggml as gg
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _graphs
from ansible_collections.llamafleet.turboquant.plugins.module_utils._hparams import HParams

CPU_ALIGN = 32


class Setup(NamedTuple):
    """Everything that shapes the graph and its placement."""

    model: Any
    build: Any
    options: Mapping[str, Any]
    env: Mapping[str, str]
    context: Any
    caches: Sequence[Any]
    placement: Any
    weights: Any
    weights_key: Any
    flash_attn: bool
    v_trans: bool
    # for each device the layers whose flash attention it cannot run
    fa_unsupported: Sequence[frozenset[int]]


class Compute(NamedTuple):
    """Bytes by device index (-1 is the host), and what went wrong."""

    bytes: dict[int, int]
    error: str
    warnings: list[str]
    splits: int = 0
    nodes: int = 0


class _Known(NamedTuple):
    """A result for some number of cells, and how far from there it holds."""

    cells: int
    layout: gg.Layout | None
    compute: Compute


def uses_alibi(h: HParams) -> bool:
    """f_max_alibi_bias > 0 (llama-model.cpp): attention without rope, with a bias by distance."""
    if h.arch in ("refact", "bloom", "jina-bert-v2"):
        return True
    if h.arch == "baichuan":
        return h.n_layer == 40
    return h.arch in ("mpt", "jais") and float(h.get("attention.max_alibi_bias", 0.0)) > 0.0


_MUL_MAT = frozenset(gg.TYPES) - {
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "q8_1",
    "tq1_0",
    "tq2_0",
    "turbo2",
    "turbo3",
    "turbo4",
}
_GET_ROWS = frozenset(["f16", "f32", "bf16", "i32", "q1_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq4_1s", "tq3_1s"])


class _Support:
    """ggml_backend_cuda_device_supports_op (ggml-cuda.cu) for the operations of these graphs."""

    def __init__(self, s: Setup) -> None:
        self.devices = s.placement.devices
        self.fa_unsupported = s.fa_unsupported

    def __call__(self, backend: int, t: gg.T) -> bool:
        device = self.devices[backend]
        if device.is_cuda:
            for s in t.src:
                if s.buf >= 0 and s.buf != backend:  # a view has no buffer yet
                    return False
        op = t.op
        if op == "flash_attn_ext":
            return int(t.name[6:]) not in self.fa_unsupported[backend]
        if not device.is_cuda and (
            t.nbytes > device.storage_range or any(s.nbytes > device.storage_range for s in t.src)
        ):
            return False
        if op in ("mul_mat", "mul_mat_id"):
            return t.src[0].ty in _MUL_MAT
        if op == "get_rows":
            return t.src[0].ty in (_GET_ROWS if device.is_cuda else _MUL_MAT | {"i32", "turbo3"})
        if op == "unary":
            return gg.is_contiguous(t.src[0])
        if op == "glu":
            return gg.is_contiguous(t.src[0], 1)
        if not device.is_cuda:
            return True
        if op == "rope":
            return gg.is_contiguous(t.src[0], 2)
        if op == "ssm_conv":
            return t.src[0].ne[1] % 128 == 0
        if op == "ssm_scan":
            state, a = t.src[0], t.src[3]
            if a.ne[0] == 1:
                return state.ne[0] in (128, 256) and state.ne[1] % 16 == 0
            return state.ne[0] == 16 and state.ne[1] == 1 and state.ne[2] % 128 == 0 and t.src[4].ne[1] == 1
        if op == "set_rows":
            if t.ty in ("turbo2", "turbo3"):
                return t.src[0].ne[0] % 64 == 0
            if t.ty == "turbo4":
                return t.src[0].ne[0] % 128 == 0
            return t.src[0].ty == "f32"
        if op == "sum_rows":
            return gg.is_contiguous(t.src[0])
        if op == "turbo_wht":
            return t.src[0].ne[0] % 32 == 0
        return True


_ROTATION_VARIABLES = ("LLAMA_ATTN_ROT_DISABLE", "LLAMA_ATTN_ROT_K_OVERRIDE", "LLAMA_ATTN_ROT_V_OVERRIDE")


def compute_buffers(s: Setup) -> Compute:
    """Buffers of every device, from what is known of this model where that holds."""
    c, o = s.context, s.options
    cells = c.n_ctx_seq
    key = (
        "compute",
        s.build.name,
        s.weights_key,
        o["program"],
        o["fit"] and len(s.placement.devices) > 1,
        o["kv_offload"],
        o["op_offload"],
        o["split_mode"],
        s.placement.offloads_all,
        c.n_seq,
        c.n_stream,
        min(c.n_ctx, c.n_ubatch),
        c.n_ctx_seq > (s.model.hparams.get("rope.scaling.original_context_length") or s.model.hparams.n_ctx_train),
        s.flash_attn,
        s.v_trans,
        tuple(s.fa_unsupported),
        # a cache either has as many cells as the context or a fixed number
        tuple((cache.form, 0 if cache.cells == cells else cache.cells) for cache in s.caches),
        tuple(s.env.get(name) for name in _ROTATION_VARIABLES),
    )
    memo = s.model.memo
    known: list[_Known] = memo.setdefault(key, [])
    for entry in known:
        steps, rest = divmod(cells - entry.cells, 256)
        if rest:
            continue
        layout = entry.layout
        if layout is None:
            if steps == 0:
                return entry.compute
        elif layout.low <= steps <= layout.high:
            if steps == 0:
                return entry.compute
            return _result(layout, steps)
    # a graph is thousands of objects that all live until the end: looking through them for garbage takes a third
    collecting = gc.isenabled()
    gc.disable()
    try:
        layout, compute = _measure(s)
    finally:
        if collecting:
            gc.enable()
    known.append(_Known(cells, layout, compute))
    return compute


def _result(layout: gg.Layout, steps: int) -> Compute:
    sizes = [size + slope * steps for size, slope in zip(layout.sizes, layout.slopes)]
    result = {i: size for i, size in enumerate(sizes[:-1]) if size}
    result[-1] = sizes[-1]
    return Compute(result, "", [], layout.splits, layout.nodes)


def _measure(s: Setup) -> tuple[gg.Layout | None, Compute]:
    try:
        builder = _graphs.build(s)
        if builder is None:
            text = (
                f"the graph of architecture {s.model.hparams.arch} is not modelled: its compute buffer is an estimate"
            )
            return None, Compute(_estimate(s), "", [text + " from above"])
        larger = [cache.with_cells(cache.cells + 256 * (cache.cells == s.context.n_ctx_seq)) for cache in s.caches]
        other = _graphs.build(s._replace(caches=larger))
    except _graphs.MissingTensorError as e:
        return None, Compute(
            _estimate(s), "", [f"the file has no tensor {e}: the compute buffer is an estimate from above"]
        )
    if other is None:  # cannot be: the graph was built with it
        raise AssertionError("other")
    gg.grow(builder.g, other.g)
    devices = s.placement.devices
    pipeline = (
        len(devices) > 1
        and s.placement.offloads_all
        and s.options["split_mode"] == "layer"
        and s.options["kv_offload"]
        and not s.options["override_tensor"]
        and not s.options["cpu_moe"]
        and not s.options["n_cpu_moe"]
    )
    scheduler = gg.Scheduler(len(devices), _Support(s), s.options["op_offload"], pipeline)
    aligns = [*[d.align for d in devices], CPU_ALIGN]
    padded = [*[d.is_cuda for d in devices], False]
    try:
        layout = gg.lay_out(builder.g, scheduler, aligns, padded)
        if len(devices) > 1 and s.options["fit"] and builder.keeps_wishes:
            # --fit measures first, as llama-fit-params does, and there a split has one input more
            measured = _graphs.build(s._replace(options={**s.options, "program": "llama-fit-params"}))
            if measured is None:  # cannot be: the graph was built with it
                raise AssertionError("measured")
            gg.check_inputs(measured.g, gg.Scheduler(len(devices), _Support(s), s.options["op_offload"], pipeline))
    except gg.SplitInputsError as e:
        error = (
            f"the scheduler aborts: {e} (GGML_SCHED_MAX_SPLIT_INPUTS, ggml-org/llama.cpp#21730); one GPU "
            "(split_mode none), or all layers on GPUs in other proportions, works"
        )
        return None, Compute(_estimate(s), error, [])
    if not all(d.is_cuda for d in devices):
        layout = layout._replace(low=0, high=0)  # Vulkan judges tensors by their size
    return layout, _result(layout, 0)


def _estimate(s: Setup) -> dict[int, int]:
    """From above, where there is no graph: logits, masks, the widest layer and attention without flash attention."""
    h, c = s.model.hparams, s.context
    tokens = -(-min(c.n_ctx, c.n_ubatch) // c.n_seq) * c.n_seq
    cells = sum(cache.cells for cache in s.caches)
    widest = max([h.n_embd, *h.n_ff, *(h.n_head[il] * h.head_k[il] for il in range(h.n_layer))])
    device = tokens * (4 * (h.n_vocab + h.n_embd) + 6 * cells + 16 * widest)
    if not s.flash_attn and h.attention_layers():
        device += tokens * 8 * max(h.n_head) * max((cache.cells for cache in s.caches), default=0)
    host = tokens * (8 * h.n_embd + 24 + 4 * cells)
    used = sorted({*s.placement.layers, s.placement.output} - {-1})
    if not used:
        return {-1: host + device}
    return {**dict.fromkeys(used, device), -1: host}
