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
from ansible_collections.llamafleet.turboquant.plugins.module_utils._cache_types import pad
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


class _Buffer(NamedTuple):
    """The buffer of one backend; graphs that differ on one backend are often alike on another and share it."""

    program: gg.Program
    align: int
    sizes: dict[tuple[int, ...], int]  # by the numbers of tokens and cells

    def size(self, known: tuple[int, ...]) -> int:
        """Bytes of the buffer."""
        result = self.sizes.get(known)
        if result is None:
            result = self.sizes[known] = self.program.peak(self.align, known)
        return result


class _Template(NamedTuple):
    """The buffers of a graph for any number of tokens and cells; the last one is the host's."""

    buffers: tuple[_Buffer, ...]
    conditions: gg.Conditions
    warning: str = ""
    error: str = ""
    only: tuple[int, ...] | None = None  # made of these numbers and for no others

    def holds(self, known: tuple[int, ...]) -> bool:
        if self.only is not None:
            return known == self.only
        return self.conditions.hold(known)


_ALWAYS = gg.Conditions((), ())


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

    def __init__(self, s: Setup, judge: gg.Judgements) -> None:
        self.is_cuda = [d.is_cuda for d in s.placement.devices]
        self.limits = [d.storage_range for d in s.placement.devices]
        self.fa_unsupported = s.fa_unsupported
        self.judge = judge

    def __call__(self, backend: int, t: gg.T) -> bool:
        is_cuda = self.is_cuda[backend]
        if is_cuda:
            for s in t.src:
                if s.buf >= 0 and s.buf != backend:  # a view has no buffer yet
                    return False
        op = t.op
        if op == "flash_attn_ext":
            return t.layer not in self.fa_unsupported[backend]
        if not is_cuda:
            # what a Vulkan device cannot bind
            larger, limit = self.judge.larger, self.limits[backend]
            if larger(t.nbytes, limit):
                return False
            for s in t.src:
                if larger(s.nbytes, limit):
                    return False
        if op in ("mul_mat", "mul_mat_id"):
            return t.src[0].ty in _MUL_MAT
        if op == "get_rows":
            return t.src[0].ty in (_GET_ROWS if is_cuda else _MUL_MAT | {"i32", "turbo3"})
        if op == "unary":
            return gg.is_contiguous(t.src[0])
        if op == "glu":
            return gg.is_contiguous(t.src[0], 1)
        if not is_cuda:
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
    """Buffers of every device: the graph is built once for all numbers of tokens and cells that do not change it."""
    c, o, p = s.context, s.options, s.placement
    memo = s.model.memo
    tokens = pad(min(c.n_ctx, c.n_ubatch), c.n_seq)
    # without recurrent states, slots that share a cache are only a number of tokens
    n_seq = c.n_seq if c.n_stream > 1 or s.model.hparams.n_embd_r or not s.build.outputs_for_all_tokens else 1
    # Operations on fewer than 32 rows are not offloaded; recurrent states work on the rows of one sequence
    free = tokens >= 32 * n_seq
    known = gg.monomials(
        tokens // n_seq if free else 0,
        next((cache.cells for cache in s.caches if cache.kind == "base"), 0),
        next((cache.cells for cache in s.caches if cache.kind == "swa"), 0),
    )
    key = (
        "compute",
        s.build.name,
        _where(s),
        tuple((d.backend, d.storage_range) for d in p.devices),
        p.layers,
        p.output,
        p.offloads_all,
        s.flash_attn,
        s.v_trans,
        n_seq,
        c.n_stream,
        0 if free else tokens,
        _graphs.rope_factors_name(s),
        tuple((name, s.env[name]) for name in _ROTATION_VARIABLES if name in s.env),
        tuple(cache.form.shape for cache in s.caches) if _types_alike(s) else tuple(cache.form for cache in s.caches),
        s.build.outputs_for_all_tokens or o["program"],
        (
            o["program"],
            o["fit"] and len(p.devices) > 1,
            o["op_offload"],
            o["split_mode"],
            _is_pipeline(s),
            *s.fa_unsupported,
        )
        if p.devices
        else (),
        o["kv_offload"],
    )
    found: list[tuple[_Template, dict[Any, Compute]]] = memo.setdefault(key, [])
    for template, results in found:
        result = results.get(known)
        if result is None and template.holds(known):
            result = _result(s, template, known)
            results[known] = result
        if result is not None:
            return result
    # a graph is thousands of objects that all live until the end: looking through them for garbage takes a third
    collecting = gc.isenabled()
    gc.disable()
    try:
        template = _measure(s, known, n_seq if free else 0)
    finally:
        if collecting:
            gc.enable()
    result = _result(s, template, known)
    found.append((template, {known: result}))
    return result


def _where(s: Setup) -> int:
    """A number for where the weights lie: on which device or in RAM."""
    memo = s.model.memo
    number: int | None = memo.get(("where", s.weights_key))
    if number is None:
        places = tuple(x if isinstance(x, int) and x >= 0 else gg.CPU for x in s.weights.where.values())
        number = memo.setdefault(("places", places), len(memo))
        memo["where", s.weights_key] = number
    return number


def _types_alike(s: Setup) -> bool:
    """Whether nothing in the compute buffers has the type of a cache, so that the sizes of its types do not matter."""
    devices = s.placement.devices
    if not s.flash_attn and not s.v_trans:
        return False  # V is transposed by a copy in its own type
    if s.build.rotates_by_default or any(name in s.env for name in _ROTATION_VARIABLES):
        return False
    if not devices:
        return True
    if not s.options["kv_offload"] or not all(d.is_cuda for d in devices) or any(s.fa_unsupported):
        return False
    h, layers = s.model.hparams, s.placement.layers
    if min(layers) < 0:
        return False
    # layers without a cache of their own may read one of another device
    return bool(h.kv_from_start >= h.n_layer or min(layers) == max(layers))


def _is_pipeline(s: Setup) -> bool:
    """Pipeline parallelism (llama-context.cpp:316)."""
    o = s.options
    return bool(
        len(s.placement.devices) > 1
        and s.placement.offloads_all
        and o["split_mode"] == "layer"
        and o["kv_offload"]
        and not o["override_tensor"]
        and not o["cpu_moe"]
        and not o["n_cpu_moe"]
    )


def _result(s: Setup, template: _Template, known: tuple[int, ...]) -> Compute:
    if not template.buffers:
        return Compute(_estimate(s), template.error, [template.warning] if template.warning else [])
    sizes = [buffer.size(known) for buffer in template.buffers]
    result = {i: size for i, size in enumerate(sizes[:-1]) if size}
    result[-1] = sizes[-1]
    return Compute(result, "", [])


def with_unknowns(s: Setup, n_seq: int) -> Setup:
    """The setup with unknowns for the cells of its caches and, unless n_seq is 0, the tokens of n_seq sequences."""
    cells = {"base": gg.BASE_CELLS, "swa": gg.SWA_CELLS}
    context = s.context
    if n_seq:
        unknown = gg.TOKENS * n_seq
        context = context._replace(n_ctx=unknown, n_ubatch=unknown, n_seq=n_seq)
    return s._replace(context=context, caches=[cache.with_cells(cells[cache.kind]) for cache in s.caches])


def _measure(s: Setup, known: Sequence[int], n_seq: int) -> _Template:
    h = s.model.hparams
    if not _graphs.is_known(h):
        text = f"the graph of architecture {h.arch} is not modelled: its compute buffer is an estimate from above"
        return _Template((), _ALWAYS, warning=text)
    support = _Support(s, gg.Judgements(known))
    only = None
    try:
        try:
            return _lay_out_general(with_unknowns(s, n_seq), support)
        except gg.NumbersNeededError:
            only = tuple(known)
            return lay_out(s, support)._replace(only=only)
    except _graphs.MissingTensorError as e:
        text = f"the file has no tensor {e}: the compute buffer is an estimate from above"
        return _Template((), _ALWAYS, warning=text)
    except gg.SplitInputsError as e:
        error = (
            f"the scheduler aborts: {e} (GGML_SCHED_MAX_SPLIT_INPUTS, ggml-org/llama.cpp#21730); one GPU "
            "(split_mode none), or all layers on GPUs in other proportions, works"
        )
        return _Template((), support.judge.conditions(), error=error, only=only)


def _lay_out_general(s: Setup, support: _Support) -> _Template:
    """With the repeated layers folded where they are allocated alike."""
    layers = _graphs.signatures(s, _graphs.count_layers(s.model.hparams))
    for plain in (True, False) if all(layer.plain for layer in layers) else (False,):
        fold = _graphs.fold(layers, plain)
        if fold is None:
            break
        try:
            return lay_out(s, support, fold)
        except gg.CannotRunError:
            raise  # the tensor is in the whole graph too
        except (gg.NotPeriodicError, gg.SplitInputsError):
            continue  # an error is told of the whole graph only
    return lay_out(s, support)


def lay_out(s: Setup, support: _Support, fold: gg.Fold | None = None) -> _Template:
    """Build the graph, split and record it, with all its layers or with those that are alike folded."""
    kept = fold.kept if fold is not None else ()
    devices, o = s.placement.devices, s.options
    pipeline = _is_pipeline(s)
    builder = _graphs.build(s, kept)
    scheduler = gg.Scheduler(len(devices), support, o["op_offload"], pipeline)
    padded = [*[d.is_cuda for d in devices], False]
    programs = gg.lay_out(builder.g, scheduler, padded, support.judge, builder.starts, fold)
    if len(devices) > 1 and o["fit"] and builder.keeps_wishes:
        # --fit measures first, as llama-fit-params does, and there a split has one input more
        measured = _graphs.build(s._replace(options={**o, "program": "llama-fit-params"}), kept)
        gg.check_inputs(measured.g, gg.Scheduler(len(devices), support, o["op_offload"], pipeline))
    memo = s.model.memo
    aligns = (*[d.align for d in devices], CPU_ALIGN)
    buffers = [memo.setdefault(("buffer", *of), _Buffer(*of, {})) for of in zip(programs, aligns)]
    return _Template(tuple(buffers), support.judge.conditions())


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
