# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Predict the memory of llama-server from a model's header and the server's options.

Every rule is llama.cpp's own (file:line of TheTom/llama-cpp-turboquant 69d8e4be unless another build is
named); docs/memory_model.md tells the whole. Nothing here touches a file or a device.
"""

from __future__ import annotations

import marshal
import math
import re
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _compute
from ansible_collections.llamafleet.turboquant.plugins.module_utils._builds import DEFAULT_BUILD, Build, get_build
from ansible_collections.llamafleet.turboquant.plugins.module_utils._cache_types import (
    WEIGHT_TYPES,
    TypeSize,
    is_turbo,
    pad,
)
from ansible_collections.llamafleet.turboquant.plugins.module_utils._hparams import (
    KNOWN_ARCHITECTURES,
    NEXTN_QKV_LOADED,
    NEXTN_SKIPPED,
    NO_MEMORY,
    HParams,
)

MIB = 1024 * 1024
HOST = "host"
PROGRAMS = ("llama-server", "llama-fit-params")
BACKENDS = ("cuda", "rocm", "vulkan")
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
CPU_ALIGN = 32  # GGML_MEM_ALIGN of the CPU buffer type (TENSOR_ALIGNMENT)
# ggml-cuda.cu:838-860; Vulkan: minStorageBufferOffsetAlignment, 16 to 64 on known devices
DEVICE_ALIGN = {"cuda": 128, "rocm": 128, "vulkan": 16}
CUDA_ROW_PADDING = 512  # MATRIX_ROW_PADDING
# The rotation matrices of a cache whose K is turbo: two of 128 x 128 floats and 128 scales (llama-kv-cache.cpp:375)
ROTATION_BYTES = (2 * 128 * 128 * 4, 128 * 4)
# A Vulkan device cannot bind a tensor larger than this; 4 GiB - 1 on RADV, AMDVLK and NVIDIA, 128 MiB on llvmpipe.
VULKAN_STORAGE_RANGE = 2**32 - 1

# ggml-cuda.cu, supports_op: types that MUL_MAT and GET_ROWS take.
_CUDA_MUL_MAT = frozenset(WEIGHT_TYPES) - {"F64", "I8", "I16", "I32", "I64", "Q8_1", "TQ1_0", "TQ2_0"}
_CUDA_GET_ROWS = frozenset(
    ["F16", "F32", "BF16", "I32", "Q1_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ4_1S", "TQ3_1S"]
)
_VULKAN_MUL_MAT = _CUDA_MUL_MAT - {"Q8_K", "TQ3_1S"}
_VULKAN_GET_ROWS = _VULKAN_MUL_MAT - {"TQ4_1S"}

# LLM_TENSOR_INFOS (llama-arch.cpp:558-764): tensors without a layer number, by where they are used.
_INPUT_TENSORS = frozenset(["token_embd", "position_embd", "token_types", "per_layer_token_embd"])
_FIRST_LAYER_TENSORS = frozenset(["token_embd_norm", "per_layer_model_proj", "per_layer_proj_norm"])
_ROPE_TENSORS = frozenset(["rope_freqs", "rope_factors_long", "rope_factors_short"])
_BLOCK = re.compile(r"(?:(?:enc|dec)\.)?blk\.(\d+)\.(.+)")
_SUFFIXES = frozenset(["weight", "bias", "scale", "input_scale"])
# Convolution and scan weights have conditions of their own on a GPU.
_CONV_TENSORS = frozenset(["ssm_conv1d", "shortconv.conv"])


class Device(NamedTuple):
    """A GPU as the program sees it."""

    name: str
    backend: str
    total: int
    free: int
    storage_range: int
    storage_known: bool = True  # the device, or its name, tells the range

    @property
    def align(self) -> int:
        return DEVICE_ALIGN[self.backend]

    @property
    def is_cuda(self) -> bool:
        return self.backend in ("cuda", "rocm")


class Option(NamedTuple):
    """An option: its kind and the default of llama-server and of llama-fit-params."""

    kind: str
    server: Any
    fit: Any


# common/arg.cpp and common/common.h. -np: server.cpp:95-100 against common.h (n_parallel = 1).
OPTIONS: dict[str, Option] = {
    "ctx_size": Option("count", 0, 0),
    "parallel": Option("parallel", -1, 1),
    "kv_unified": Option("bool", False, False),
    "cache_type_k": Option("type", "f16", "f16"),
    "cache_type_v": Option("type", "f16", "f16"),
    "flash_attn": Option("fa", "auto", "auto"),
    "swa_full": Option("bool", False, False),
    "batch_size": Option("count", 2048, 2048),
    "ubatch_size": Option("count", 512, 512),
    "n_gpu_layers": Option("layers", -1, -1),
    "n_cpu_moe": Option("count", 0, 0),
    "cpu_moe": Option("bool", False, False),
    "override_tensor": Option("overrides", (), ()),
    "tensor_split": Option("split", (), ()),
    "split_mode": Option("split_mode", "layer", "layer"),
    "main_gpu": Option("count", 0, 0),
    "kv_offload": Option("bool", True, True),
    "mmap": Option("bool", True, False),
    "op_offload": Option("bool", True, True),
    "repack": Option("bool", True, True),
    "no_host": Option("bool", False, False),
    "fit": Option("bool", True, False),
    "fit_target": Option("count", 1024, 1024),
    "fit_ctx": Option("count", 4096, 4096),
    "mmproj_bytes": Option("count", 0, 0),
    "mmproj_offload": Option("bool", True, True),
    "cache_ram": Option("signed", None, 0),
    "ctx_checkpoints": Option("count", None, 0),
    "embeddings": Option("bool", False, False),
    "fa_all_quants": Option("bool", False, False),
    "program": Option("program", "llama-server", "llama-server"),
}


LEAST_STORAGE_RANGE = 1 << 27  # the least maxStorageBufferRange that Vulkan allows (its Required Limits)
LLVMPIPE_STORAGE_RANGE = LEAST_STORAGE_RANGE  # Mesa's software rasterizer binds no more


def _number(name: str, value: Any, low: int, rule: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            value = int(value)
        else:
            raise ValueError(f"option {name} is {value!r}, must be {rule}")
    if value < low:
        raise ValueError(f"option {name} is {value}, must be {rule}")
    return int(value)


def _parse(name: str, kind: str, value: Any, build: Build) -> Any:
    """Check one option and bring it to the form the rules use."""
    if kind == "count":
        return _number(name, value, 0, "a whole number of 0 or more")
    if kind == "signed":
        return _number(name, value, -1, "a whole number of MiB, 0 for none or -1 for no limit")
    if kind == "parallel":
        if value in (0, "0"):
            raise ValueError("option parallel is 0, must be 1 or more slots, or -1 for the default of four")
        return _number(name, value, -1, "a number of slots of 1 or more, or -1 for the default of four")
    if kind == "layers":
        if value in ("auto", "all"):
            return -1
        return _number(name, value, -1, "a number of layers of 0 or more, -1 (or 'auto', 'all') for all")
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise ValueError(f"option {name} is {value!r}, must be true or false")
    if kind == "type":
        if isinstance(value, str) and value in build.cache_types:
            return str(value)
        raise ValueError(
            f"option {name} is {value!r}, must be one of the cache types of build {build.name}: "
            + ", ".join(build.cache_types)
        )
    if kind == "fa":
        if isinstance(value, bool):
            return "on" if value else "off"
        if value in ("on", "off", "auto"):
            return str(value)
        raise ValueError(f"option {name} is {value!r}, must be on, off or auto")
    if kind == "split_mode":
        if value in ("none", "layer", "row", "tensor"):
            return str(value)
        raise ValueError(f"option {name} is {value!r}, must be none, layer, row or tensor")
    if kind == "program":
        if value in PROGRAMS:
            return str(value)
        raise ValueError(f"program is {value!r}, must be one of {', '.join(PROGRAMS)}")
    if kind == "split":
        parts = re.split(r"[,/]", value) if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise ValueError(f"option {name} is {value!r}, must be proportions such as '3,1' or [3, 1]")
        try:
            split = tuple(float(x) for x in parts)
        except (TypeError, ValueError):
            raise ValueError(f"option {name} is {value!r}, must be proportions such as '3,1' or [3, 1]") from None
        if any(x < 0 or not math.isfinite(x) for x in split):
            raise ValueError(f"option {name} is {value!r}: a proportion must not be negative")
        return split
    # overrides: 'regex=BUFFER' separated by commas, as -ot takes them, or a list of such
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(x, str) for x in parts):
        raise ValueError(f"option {name} is {value!r}, must be 'REGEX=BUFFER' or a list of such strings")
    rules = []
    for part in (p for x in parts for p in x.split(",")):
        pattern, equals, target = part.partition("=")
        if not equals or not pattern or not target:
            raise ValueError(f"option {name} holds {part!r}, must be REGEX=BUFFER, as in 'exps=CPU'")
        try:
            re.compile(pattern)
        except re.error as e:
            raise ValueError(f"option {name} holds {part!r}: the pattern is not a regular expression: {e}") from None
        rules.append((str(pattern), str(target)))
    return tuple(rules)


def parse_options(options: Mapping[str, Any] | None, build: Build, program: str | None = None) -> dict[str, Any]:
    """All options with their defaults; an unknown name or a wrong value is a ValueError."""
    given = dict(options or {})
    if program is None:
        program = given.get("program", "llama-server")
    _parse("program", "program", program, build)
    column = 1 if program == "llama-server" else 2
    result = {name: option[column] for name, option in OPTIONS.items()}
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None:
            raise ValueError(
                f"unknown option {name!r}: the options are llama-server's long names with underscores and without "
                f"'no-' ({', '.join(sorted(OPTIONS))})"
            )
        if value is None:
            continue
        result[str(name)] = _parse(name, option.kind, value, build)
    result["program"] = program
    if result["cache_ram"] is None:
        result["cache_ram"] = build.cache_ram_mib
    if result["ctx_checkpoints"] is None:
        result["ctx_checkpoints"] = build.ctx_checkpoints
    if result["batch_size"] == 0 and result["ubatch_size"] == 0:
        raise ValueError("options batch_size and ubatch_size are both 0: llama.cpp refuses that; give batch_size 2048")
    return result


def parse_devices(devices: Iterable[Mapping[str, Any]] | None) -> tuple[Device, ...]:
    """The GPUs, checked."""
    if isinstance(devices, (str, Mapping)):
        raise ValueError(f"devices is {devices!r:.80}, must be a list of {{name, backend, total_bytes, free_bytes}}")
    result: list[Device] = []
    for index, device in enumerate(devices or ()):
        if not isinstance(device, Mapping):
            raise ValueError(f"device {index} is {device!r:.80}, must be {{name, backend, total_bytes, free_bytes}}")
        backend = str(device.get("backend", "cuda"))
        backend = {"hip": "rocm"}.get(backend, backend)
        if backend not in BACKENDS:
            raise ValueError(f"device {index} has backend {backend!r}, must be one of {', '.join(BACKENDS)}")
        prefix = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}[backend]
        name = str(device.get("name", f"{prefix}{index}"))
        if name == HOST or name in [d.name for d in result]:
            raise ValueError(f"device {index} is named {name!r}: the names must differ, and '{HOST}' is the RAM")
        sizes = []
        for key in ("total_bytes", "free_bytes", "max_storage_buffer_range"):
            value = device.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"device {name} has {key} {value!r}, must be a number of bytes of 0 or more")
            sizes.append(value)
        total = sizes[0] if sizes[0] is not None else sizes[1] or 0
        free = sizes[1] if sizes[1] is not None else total
        if free > total:
            raise ValueError(f"device {name} has free_bytes {free} above its total_bytes {total}")
        software = "llvmpipe" in name.lower()
        storage = LLVMPIPE_STORAGE_RANGE if software else VULKAN_STORAGE_RANGE
        told = backend != "vulkan" or software or sizes[2] is not None
        result.append(Device(name, backend, total, free, sizes[2] if sizes[2] is not None else storage, told))
    return tuple(result)


# Types of weights that some processor computes with in another form, which ggml-cpu keeps in a buffer CPU_REPACK or AMX
# (ggml/src/ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type: AVX2, AVX-512, NEON, SVE, RISC-V).
REPACKABLE_TYPES = frozenset(["Q4_0", "Q4_K", "Q2_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"])


class Tensor(NamedTuple):
    """A tensor of the file, with what decides where it goes."""

    name: str
    dims: tuple[int, ...]
    type: str
    nbytes: int
    offset: int  # from the first tensor, in a file whose tensors follow each other
    place: str  # input | output | layer | rope | skip
    layer: int
    op: str  # get_rows | mul_mat | conv | scan | other


class Model:
    """A header, read once: geometry, tensors and what was computed for them."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        self.hparams = HParams(header)
        alignment = header["metadata"].get("general.alignment", CPU_ALIGN)
        self.alignment = alignment if isinstance(alignment, int) and alignment > 0 else CPU_ALIGN
        self.tensors = self._tensors(header.get("tensors") or ())
        self.names = {t.name for t in self.tensors}
        self.by_name = {t.name: t for t in self.tensors}
        # of each layer the tensors by what follows blk.N. in their names
        self.by_layer: list[dict[str, Tensor]] = [{} for _layer in range(self.hparams.n_layer)]
        for t in self.tensors:
            if 0 <= t.layer < self.hparams.n_layer and t.name.startswith("blk."):
                self.by_layer[t.layer][t.name[t.name.index(".", 4) + 1 :]] = t
        self.memo: dict[Any, Any] = {}
        self.repackable_bytes = sum(
            t.nbytes for t in self.tensors if t.op == "mul_mat" and t.place != "skip" and t.type in REPACKABLE_TYPES
        )

    def _tensors(self, raw: Iterable[Sequence[Any]]) -> list[Tensor]:
        h = self.hparams
        skipped_from = h.n_layer - h.nextn if h.arch in NEXTN_SKIPPED and h.nextn else h.n_layer
        result = []
        offset = 0
        for entry in raw:
            try:
                name, dims, ttype, nbytes = entry
                dims = tuple(int(d) for d in dims)
                nbytes = int(nbytes)
            except (TypeError, ValueError):
                raise ValueError(f"tensor {entry!r:.80} must be [name, dims, type, bytes]") from None
            place, layer, op = self._place(name, skipped_from)
            result.append(Tensor(str(name), dims, str(ttype).upper(), nbytes, offset, place, layer, op))
            offset += pad(nbytes, self.alignment)
        return result

    def _place(self, name: str, skipped_from: int) -> tuple[str, int, str]:
        """LLM_TENSOR_INFOS and the skip flag: place, layer, operation."""
        h = self.hparams
        stem, _dot, suffix = name.rpartition(".")
        if suffix not in _SUFFIXES:
            stem, suffix = name, ""  # ssm_a, ssm_d and others have none
        bias = suffix == "bias"
        match = _BLOCK.match(stem)
        if match is None:
            if stem in _INPUT_TENSORS:
                return "input", -1, "get_rows"
            if stem == "token_embd_norm" and h.arch in ("lfm2", "lfm2moe"):
                return "output", -1, "other"
            if stem in _FIRST_LAYER_TENSORS:
                return "layer", 0, "mul_mat" if stem == "per_layer_model_proj" else "other"
            if stem in _ROPE_TENSORS:
                return "rope", -1, "other"
            matrix = stem in ("output", "cls", "cls.output", "dense_2", "dense_3") or stem.startswith("altup")
            return "output", -1, "mul_mat" if matrix and not bias else "other"
        layer, kind = int(match.group(1)), match.group(2)
        if layer >= skipped_from:
            qkv = kind == "attn_qkv" or (bias and kind in ("attn_q", "attn_k", "attn_v"))
            if not (qkv and h.arch in NEXTN_QKV_LOADED):
                return "skip", layer, "other"
        if bias:
            return "layer", layer, "other"
        if kind == "cross_attn_rel_b":
            return "skip", layer, "other"  # loaded for T5, never used (GGML_OP_NONE)
        if kind in _CONV_TENSORS:
            return "layer", layer, "conv"
        if kind == "ssm_a":
            scan = h.arch not in ("qwen3next", "qwen35", "qwen35moe", "kimi-linear")
            return "layer", layer, "scan" if scan else "other"
        if "norm" in kind or kind in ("ssm_d", "attn_sinks", "ffn_act", "layer_output_scale", "altup_correct_scale"):
            return "layer", layer, "other"
        if suffix != "weight" or kind.startswith(("time_mix_lerp", "channel_mix_lerp")):
            return "layer", layer, "other"
        return "layer", layer, "mul_mat"


_MODELS: OrderedDict[bytes, Model] = OrderedDict()
_MODELS_KEPT = 64


def _plain(value: Any) -> Any:
    """Strip Ansible's tagged and lazy containers: what stays is Python's own types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return str(value)


def load_model(header: Mapping[str, Any] | Model) -> Model:
    """The model of a header as gguf_info returns it; equal headers share one Model and what it remembers."""
    if isinstance(header, Model):
        return header
    if not isinstance(header, Mapping):
        raise ValueError(f"model is {header!r:.80}, must be the model that gguf_info returns")
    relevant = {key: header.get(key) for key in ("architecture", "metadata", "tensors")}
    if not isinstance(relevant["metadata"], Mapping):
        raise ValueError("model has no metadata, must be the model that gguf_info returns")
    try:
        key = marshal.dumps(relevant, 2)
    except ValueError:
        relevant = _plain(relevant)
        key = marshal.dumps(relevant, 2)
    model = _MODELS.get(key)
    if model is None:
        model = Model(relevant)
        _MODELS[key] = model
        while len(_MODELS) > _MODELS_KEPT:
            _MODELS.popitem(last=False)
    else:
        _MODELS.move_to_end(key)
    return model


class Context(NamedTuple):
    """The sizes of llama_context (llama-context.cpp:161-195)."""

    n_ctx: int
    n_ctx_seq: int
    n_seq: int
    n_stream: int
    n_batch: int
    n_ubatch: int
    kv_unified: bool


def context_sizes(h: HParams, o: Mapping[str, Any], n_ctx: int) -> Context:
    """n_ctx, slots and streams; the micro-batch is capped before n_ctx is padded."""
    n_seq, unified = o["parallel"], o["kv_unified"]
    if n_seq < 0:
        n_seq, unified = (4, True) if o["program"] == "llama-server" else (1, unified)
    n_ctx = n_ctx or h.n_ctx_train
    n_batch = min(n_ctx, o["batch_size"]) if h.causal else o["batch_size"]
    n_ubatch = min(n_batch, o["ubatch_size"] or o["batch_size"])
    n_ctx = pad(n_ctx, 256)
    if unified:
        return Context(n_ctx, n_ctx, n_seq, 1, n_batch, n_ubatch, True)
    per_seq = pad(n_ctx // n_seq, 256)
    return Context(per_seq * n_seq, per_seq, n_seq, n_seq, n_batch, n_ubatch, False)


class CacheLayer(NamedTuple):
    """K and V of one layer; the rows are the bytes of one cell."""

    il: int
    type_k: str
    ne_k: int
    k_row: int
    type_v: str
    ne_v: int
    v_row: int


def _type_class(name: str) -> str:
    """Flash attention reads f32 as a copy in f16 and rotates turbo types; all others are alike to the graph."""
    return name if name in ("", "f32") else "turbo" if is_turbo(name) else "plain"


class CacheForm:
    """What a cache is apart from its number of cells: made once for a model and its types."""

    __slots__ = ("by_owner", "k_row", "kind", "layers", "numbers", "rotation", "shape", "type_k", "type_v", "v_row")

    def __init__(self, kind: str, layers: tuple[CacheLayer, ...], type_k: str, type_v: str) -> None:
        self.kind = kind
        self.layers = layers
        self.numbers = [layer.il for layer in layers]
        self.type_k = type_k
        self.type_v = type_v
        self.rotation = is_turbo(type_k) and bool(layers)
        self.k_row = sum(layer.k_row for layer in layers)
        self.v_row = sum(layer.v_row for layer in layers)
        self.by_owner: dict[Any, dict[tuple[int, int, int], int]] = {}
        # what of the types changes the graph where no cache is copied between devices
        self.shape = (
            kind,
            self.rotation,
            tuple((r.il, _type_class(r.type_k), r.ne_k, _type_class(r.type_v), r.ne_v) for r in layers),
        )

    def allocations(self, build: Build, p: Placement, kv_offload: bool) -> dict[tuple[int, int, int], int]:
        """How often each (owner, bytes of a cell, padding) occurs."""
        key = (build.name, p.layers, tuple(d.backend for d in p.devices)) if kv_offload else None
        result = self.by_owner.get(key)
        if result is None:
            result = {}
            for layer in self.layers:
                owner = p.layers[layer.il] if kv_offload else -1
                for ne, row, name in ((layer.ne_k, layer.k_row, layer.type_k), (layer.ne_v, layer.v_row, layer.type_v)):
                    if name:
                        item = (owner, row, _row_padding(build, p, owner, ne, name))
                        result[item] = result.get(item, 0) + 1
            self.by_owner[key] = result
        return result


class Cache(NamedTuple):
    """A cache of some number of cells, for each stream."""

    form: CacheForm
    cells: int
    streams: int

    @property
    def kind(self) -> str:
        return self.form.kind

    @property
    def layers(self) -> tuple[CacheLayer, ...]:
        return self.form.layers

    @property
    def type_k(self) -> str:
        return self.form.type_k

    @property
    def type_v(self) -> str:
        return self.form.type_v

    @property
    def rotation(self) -> bool:
        return self.form.rotation

    @property
    def k_bytes(self) -> int:
        return self.form.k_row * self.cells * self.streams

    @property
    def v_bytes(self) -> int:
        return self.form.v_row * self.cells * self.streams

    def with_cells(self, cells: int) -> Cache:
        return Cache(self.form, cells, self.streams)


def _asymmetric(h: HParams, build: Build, type_k: str, type_v: str, env: Mapping[str, str]) -> bool:
    """Whether a symmetric turbo K becomes q8_0 (llama-kv-cache.cpp:122-146); only layer 0 is looked at."""
    if not build.auto_asymmetric or type_k != type_v or not is_turbo(type_k):
        return False
    ratio = h.n_head[0] // h.n_head_kv[0] if h.n_head_kv[0] > 0 else 1
    return ratio >= 6 and env.get("TURBO_AUTO_ASYMMETRIC", "")[:1] != "0"


def adaptive_mode(h: HParams, build: Build, type_v: str, env: Mapping[str, str]) -> int:
    """TURBO_LAYER_ADAPTIVE (llama-kv-cache.cpp:266-290), with atoi's reading of the variable."""
    if not build.layer_adaptive:
        return 0
    raw = env.get("TURBO_LAYER_ADAPTIVE")
    if raw is not None:
        number = re.match(r"\s*([+-]?\d+)", raw)
        return int(number.group(1)) if number else 0
    return 7 if type_v == "turbo2" and h.n_layer >= 8 else 0


def _layer_types(mode: int, il: int, n_layer: int, type_k: str, type_v: str) -> tuple[str, str]:
    """llama-kv-cache.cpp:291-328."""
    if n_layer < 8:
        return type_k, type_v
    if is_turbo(type_k) and ((mode == 1 and (il < 4 or il >= n_layer - 4)) or (mode == 2 and il >= n_layer - 8)):
        return "q8_0", "q8_0"
    if is_turbo(type_v):
        boundary = il < 2 or il >= n_layer - 2
        if mode == 5:
            return type_k, "turbo4" if boundary else "turbo2"
        if mode == 6:
            return type_k, "turbo4" if il >= n_layer - 8 else "turbo2"
        if mode == 7:
            return type_k, "q8_0" if boundary else "turbo2"
    return type_k, type_v


def reported_wrong(build: Build, backends: Iterable[str], type_k: str, type_v: str) -> list[str]:
    """What was reported of the answers that these cache types give on one of the backends, each once."""
    used = {(backend, name) for backend in backends for name in (type_k, type_v)}
    return [text for place, text in build.reported_wrong.items() if place in used]


def kv_caches(
    model: Model, build: Build, c: Context, o: Mapping[str, Any], env: Mapping[str, str], fa: bool
) -> tuple[Cache, ...]:
    """The K/V caches as llama_kv_cache builds them."""
    h = model.hparams
    cells = {"base": c.n_ctx_seq, "swa": c.n_ctx_seq}
    if h.sliding and not o["swa_full"]:
        # llama-kv-cache-iswa.cpp:46-72
        window = h.n_swa * (c.n_seq if c.kv_unified else 1) + c.n_ubatch
        cells["swa"] = pad(min(c.n_ctx_seq, window), 256)
    forms = _cache_forms(model, build, o["cache_type_k"], o["cache_type_v"], env, fa)
    return tuple(Cache(form, cells[form.kind], c.n_stream) for form in forms)


def _cache_forms(
    model: Model, build: Build, asked_k: str, asked_v: str, env: Mapping[str, str], fa: bool
) -> tuple[CacheForm, ...]:
    h = model.hparams
    type_k = "q8_0" if _asymmetric(h, build, asked_k, asked_v, env) else asked_k
    mode = adaptive_mode(h, build, asked_v, env)
    key = ("caches", build.name, type_k, asked_v, mode, fa)
    found: tuple[CacheForm, ...] | None = model.memo.get(key)
    if found is not None:
        return found
    layers = h.attention_layers()
    groups = [("base", layers)]
    if h.sliding:
        groups = [("base", [il for il in layers if not h.swa[il]]), ("swa", [il for il in layers if h.swa[il]])]
    forms = []
    for kind, members in groups if layers else []:
        rows = []
        for il in members:
            k, v = _layer_types(mode, il, h.n_layer, type_k, asked_v)
            ne_k, ne_v = h.k_gqa(il), h.v_gqa(il) if fa else h.v_gqa_max
            if is_turbo(k) and h.head_k[il] % 128 and h.head_k[il]:
                ne_k = ne_k // h.head_k[il] * pad(h.head_k[il], 128)
            if is_turbo(v) and not h.is_mla and h.head_v[il] % 128 and h.head_v[il]:
                ne_v = ne_v // h.head_v[il] * pad(h.head_v[il], 128)
            k_row = build.cache_types[k].row(ne_k)
            if h.is_mla:
                rows.append(CacheLayer(il, k, ne_k, k_row, "", 0, 0))
            else:
                rows.append(CacheLayer(il, k, ne_k, k_row, v, ne_v, build.cache_types[v].row(ne_v)))
        forms.append(CacheForm(kind, tuple(rows), type_k, asked_v))
    model.memo[key] = tuple(forms)
    return model.memo[key]  # type: ignore[no-any-return]


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


class Placement(NamedTuple):
    """Which device each layer and the output layer is on; -1 is the CPU."""

    layers: tuple[int, ...]
    output: int
    devices: tuple[Device, ...]
    offloads_all: bool


def remembered_placement(model: Model, devices: tuple[Device, ...], o: Mapping[str, Any]) -> Placement:
    key = ("placement", devices, o["split_mode"], o["main_gpu"], o["n_gpu_layers"], o["tensor_split"])
    result: Placement | None = model.memo.get(key)
    if result is None:
        result = placement(model.hparams, devices, o)
        model.memo[key] = result
    return result


def placement(h: HParams, devices: Sequence[Device], o: Mapping[str, Any]) -> Placement:
    """llama_model::load_tensors (llama-model.cpp:2996-3050), in float32 as there."""
    used = tuple(devices)
    if o["split_mode"] == "none" and used:
        if o["main_gpu"] >= len(used):
            raise ValueError(f"option main_gpu is {o['main_gpu']}, must be below the number of devices, {len(used)}")
        used = (used[o["main_gpu"]],)
    ngl = o["n_gpu_layers"] if o["n_gpu_layers"] >= 0 else h.n_layer + 1
    start = max(h.n_layer + 1 - ngl, 0)
    active = min(ngl, h.n_layer + 1) if used else 0
    shares = [float(d.free) for d in used]
    split = o["tensor_split"]
    if len(split) > max(len(used), 1) and any(split[len(used) :]):
        raise ValueError(f"option tensor_split has {len(split)} proportions, must have at most {len(used)}")
    if any(split[: len(used)]):
        shares = [split[i] if i < len(split) else 0.0 for i in range(len(used))]
    total, points = 0.0, []
    for share in shares:
        total = _float32(total + _float32(share))
        points.append(total)
    points = [_float32(p / total) if total else 1.0 for p in points]

    def where(il: int) -> int:
        if il < start or il - start >= active:
            return -1
        position = _float32(float(il - start) / active)
        for index, point in enumerate(points):
            if position < point:
                return index
        return len(points) - 1

    return Placement(tuple(where(il) for il in range(h.n_layer)), where(h.n_layer), used, ngl > h.n_layer)


def overrides(o: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """-ot, then -cmoe and -ncmoe (common/arg.cpp:2284-2316); the first match wins."""
    rules: list[tuple[str, str]] = list(o["override_tensor"])
    if o["cpu_moe"]:
        rules.append((r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"))
    rules += [(rf"blk\.{i}\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU") for i in range(o["n_cpu_moe"])]
    return tuple(rules)


def _supports(device: Device, t: Tensor, op: str, h: HParams) -> bool:
    """weight_buft_supported: can the device run the operation that uses the tensor (supports_op)."""
    cuda = device.is_cuda
    if not cuda and t.nbytes > device.storage_range:
        return False
    if op == "mul_mat":
        return t.type in (_CUDA_MUL_MAT if cuda else _VULKAN_MUL_MAT)
    if op == "get_rows":
        return t.type in (_CUDA_GET_ROWS if cuda else _VULKAN_GET_ROWS)
    if op == "conv":
        return not cuda or (len(t.dims) > 1 and t.dims[1] % 128 == 0)
    if op == "scan" and cuda:
        n_head = t.dims[1] if len(t.dims) > 1 else 1
        d_inner = h.get("ssm.inner_size", 0)
        head_dim = d_inner // n_head if n_head else 0
        d_state = h.get("ssm.state_size", 0) if t.dims[0] == 1 else t.dims[0]
        if t.dims[0] == 1:
            return d_state in (128, 256) and head_dim % 16 == 0
        groups = h.get("ssm.group_count", 0) or 1
        return bool(d_state == 16 and head_dim == 1 and n_head % 128 == 0 and groups == 1)
    return True


CPU_BUFFER = "CPU"
HOST_BUFFER = "HOST"  # pinned: CUDA_Host, ROCm_Host, Vulkan_Host


class Weights(NamedTuple):
    """Where each tensor landed: (tensor, buffer), where a buffer is a device index, CPU or HOST."""

    placed: tuple[tuple[Tensor, int | str], ...]
    bytes: dict[int | str, int]
    where: dict[str, int | str]  # by tensor name; the tied output is 'output.weight'


def place_weights(model: Model, p: Placement, o: Mapping[str, Any]) -> Weights:
    """llama_model_loader::create_tensor (llama-model-loader.cpp:1049-1290)."""
    h = model.hparams
    rules = [(re.compile(pattern), target) for pattern, target in overrides(o)]
    buffers = {d.name: i for i, d in enumerate(p.devices)}
    cpu_list: list[str] = ([HOST_BUFFER] if p.devices and not o["no_host"] else []) + [CPU_BUFFER]

    def pick(t: Tensor, op: str, owner: int) -> int | str:
        for pattern, target in rules:
            if pattern.search(t.name):
                if target == CPU_BUFFER:
                    return from_cpu_list(t, op)
                if target in buffers:
                    return buffers[target]
                if target.endswith("_Host"):
                    return CPU_BUFFER if o["mmap"] else HOST_BUFFER
                known = ", ".join([CPU_BUFFER, *buffers])
                raise ValueError(f"option override_tensor sends {t.name} to {target!r}, must be one of {known}")
        if owner >= 0 and _supports(p.devices[owner], t, op, h):
            return owner
        return from_cpu_list(t, op)

    def from_cpu_list(t: Tensor, op: str) -> str:
        # a pinned buffer is asked of the first device, must support the operation, and is not used with mmap
        if HOST_BUFFER in cpu_list and not o["mmap"] and _supports(p.devices[0], t, op, h):
            return HOST_BUFFER
        return CPU_BUFFER

    placed: list[tuple[Tensor, int | str]] = []
    where: dict[str, int | str] = {}
    rope: list[Tensor] = []
    for t in model.tensors:
        if t.place == "skip":
            continue
        if t.place == "rope":
            rope.append(t)
            continue
        if t.place == "input":
            target = pick(t, t.op, -1)
        elif t.place == "output":
            target = pick(t, t.op, p.output)
        else:
            target = pick(t, t.op, p.layers[t.layer] if t.layer < h.n_layer else -1)
        placed.append((t, target))
        where[t.name] = target
    # a tied output is a second copy of the embedding, unless both land in one buffer type ...
    embedding = model.by_name.get("token_embd.weight")
    if embedding is not None and "output.weight" not in model.names and _ties_output(h):
        target = pick(embedding, "mul_mat", p.output)
        where["output.weight"] = target
        # ... and Gemma 3n and 4 create it first, so there the second one is never recognised
        if target != where["token_embd.weight"] or h.arch in ("gemma4", "gemma3n"):
            placed.append((embedding, target))
    # frequency factors: one copy in each buffer type that holds a layer which uses them
    for t in rope:
        seen: set[int | str] = set()
        for il in range(h.n_layer):
            if h.arch == "gemma4" and h.swa[il]:
                continue
            seen.add(pick(t, "other", p.layers[il]))
        placed += [(t, target) for target in seen]
    return Weights(tuple(placed), _weight_bytes(model, placed, p, o), where)


def _ties_output(h: HParams) -> bool:
    return h.arch not in NO_MEMORY - {"llada", "rnd1", "dream", "gemma-embedding"} and h.arch != "t5encoder"


def tensor_alloc(t: Tensor, device: Device) -> int:
    """Bytes a tensor takes in a device's buffer (get_alloc_size), before alignment."""
    size = WEIGHT_TYPES.get(t.type)
    if device.is_cuda and size is not None and size.quantized and t.dims[0] % CUDA_ROW_PADDING:
        return t.nbytes + size.row(CUDA_ROW_PADDING - t.dims[0] % CUDA_ROW_PADDING)
    return t.nbytes


def _weight_bytes(
    model: Model, placed: Sequence[tuple[Tensor, int | str]], p: Placement, o: Mapping[str, Any]
) -> dict[int | str, int]:
    totals: dict[int | str, int] = {}
    mapped = [t for t, target in placed if target == CPU_BUFFER] if o["mmap"] else []
    for t, target in placed:
        if isinstance(target, int):
            device = p.devices[target]
            totals[target] = totals.get(target, 0) + pad(tensor_alloc(t, device), device.align)
        elif not (o["mmap"] and target == CPU_BUFFER):
            totals[target] = totals.get(target, 0) + pad(t.nbytes, CPU_ALIGN)
    if mapped:
        # one mapping from the first to the last tensor that stays in RAM
        first = min(t.offset for t in mapped)
        totals[CPU_BUFFER] = max(t.offset + t.nbytes for t in mapped) - first
    return totals


class Attention(NamedTuple):
    """What flash attention of one layer sees."""

    il: int
    head_k: int
    head_v: int
    type_k: str
    type_v: str
    gqa: int


def attention_ops(model: Model, caches: Sequence[Cache]) -> list[Attention]:
    """One for each layer that attends, also the layers that share another layer's cache."""
    key = ("attention", *[cache.form for cache in caches])
    result: list[Attention] | None = model.memo.get(key)
    if result is None:
        result = _attention_ops(model.hparams, caches)
        model.memo[key] = result
    return result


def _attention_ops(h: HParams, caches: Sequence[Cache]) -> list[Attention]:
    rows = {layer.il: layer for cache in caches for layer in cache.layers}
    result = []
    for il in range(h.n_layer):
        row = rows.get(il)
        if row is None and h.arch in ("gemma3n", "gemma4") and il >= h.kv_from_start:
            row = rows.get(h.kv_from_start - (2 if h.swa[il] else 1))  # llama-model.cpp:8500
        if row is None or h.n_head_kv[il] == 0:
            continue
        heads = h.n_head_kv[il]
        if h.is_mla:
            head_v, type_v = int(h.get("attention.kv_lora_rank", 512)), row.type_k
        else:
            head_v, type_v = row.ne_v // heads, row.type_v
        result.append(Attention(il, row.ne_k // heads, head_v, row.type_k, type_v, h.n_head[il] // heads))
    return result


_CUDA_FA_HEADS = frozenset([40, 64, 72, 80, 96, 112, 128, 256, 512, 576, 640])
_CUDA_MIXED = frozenset(["turbo2", "turbo3", "turbo4", "q8_0", "f16", "bf16"])
_SIMPLE = frozenset(["f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
OK, ABORT, UNSUPPORTED = "ok", "abort", "unsupported"


def cuda_vec_kernel(type_k: str, type_v: str, all_quants: bool) -> bool:
    """Whether ggml_cuda_flash_attn_ext_vec (fattn.cu:238-348) has the pair; without it decoding aborts."""
    turbo_side = {"turbo2", "turbo3", "turbo4"}
    if type_k in turbo_side:
        return type_v in turbo_side or type_v == "q8_0"
    if type_v in turbo_side:
        return type_k in ("f16", "q8_0")
    if all_quants:
        return type_k in _SIMPLE and type_v in _SIMPLE
    return type_k == type_v and type_k in ("f16", "bf16", "q8_0", "q4_0")


class Verdicts(NamedTuple):
    """Flash attention on one kind of device: what it says of each layer that is not plainly supported."""

    unsupported: dict[int, str]
    aborts: dict[int, str]
    unsupported_layers: frozenset[int]


def attention_verdicts(
    model: Model, build: Build, device: Device, caches: Sequence[Cache], all_quants: bool
) -> Verdicts:
    """flash_attention for every layer, remembered with the model."""
    key = ("flash attention", build.name, device.backend, all_quants, *[cache.form for cache in caches])
    result: Verdicts | None = model.memo.get(key)
    if result is None:
        unsupported, aborts = {}, {}
        alibi = _compute.uses_alibi(model.hparams)
        for a in attention_ops(model, caches):
            verdict, reason = flash_attention(build, device, a, all_quants, alibi)
            if verdict == UNSUPPORTED:
                unsupported[a.il] = reason
            elif verdict == ABORT:
                aborts[a.il] = reason
        result = Verdicts(unsupported, aborts, frozenset(unsupported))
        model.memo[key] = result
    return result


def flash_attention(build: Build, device: Device, a: Attention, all_quants: bool, alibi: bool) -> tuple[str, str]:
    """Verdict on one layer's flash attention on a GPU, and the reason when it is not ok."""
    pair = f"{a.type_k}/{a.type_v}"
    if device.backend == "vulkan":
        if a.head_k % 8 or a.head_v % 8:
            return UNSUPPORTED, f"Vulkan has no flash attention for head size {a.head_k}/{a.head_v} (multiples of 8)"
        if build.vulkan_fa_same_type and a.type_k != a.type_v:
            return UNSUPPORTED, f"Vulkan wants K and V of one cache type, not {pair}"
        if a.type_k not in build.vulkan_fa_types or a.type_v not in build.vulkan_fa_types:
            return UNSUPPORTED, f"Vulkan has no flash attention for {pair}"
        return OK, ""
    # fattn.cu:360-480
    if a.head_k not in _CUDA_FA_HEADS:
        return UNSUPPORTED, f"CUDA and HIP have no flash attention for K head size {a.head_k}"
    if a.head_v != (512 if a.head_k in (576, 640) else a.head_k):
        return UNSUPPORTED, (
            f"CUDA and HIP have no flash attention for K heads of {a.head_k} and V heads of {a.head_v}"
            + (" (a turbo side is padded to a multiple of 128)" if a.head_v % 128 == 0 or a.head_k % 128 == 0 else "")
        )
    if a.head_k >= 512 and (a.gqa < 2 or alibi):
        return UNSUPPORTED, f"CUDA and HIP need a GQA ratio of 2 or more for head size {a.head_k}, here it is {a.gqa}"
    if not build.cuda_fa_converts and not all_quants:
        if a.type_k != a.type_v and not {a.type_k, a.type_v} <= _CUDA_MIXED:
            return UNSUPPORTED, f"a CUDA or HIP build without GGML_CUDA_FA_ALL_QUANTS has no flash attention for {pair}"
        if a.type_k in ("q4_1", "q5_0", "q5_1"):
            return UNSUPPORTED, f"a CUDA or HIP build without GGML_CUDA_FA_ALL_QUANTS has no flash attention for {pair}"
    if a.type_k == "iq4_nl" or (a.type_k not in _SIMPLE and a.type_k not in _CUDA_MIXED and a.type_k != "f32"):
        return UNSUPPORTED, f"CUDA and HIP have no flash attention for K of type {a.type_k}"
    if build.cuda_fa_converts:
        if a.type_v == "iq4_nl":
            return UNSUPPORTED, f"CUDA and HIP have no flash attention for V of type {a.type_v}"
        return OK, ""
    if a.head_k in (64, 128, 256) and not (a.type_k == a.type_v == "f32"):
        if not cuda_vec_kernel(a.type_k, a.type_v, all_quants):
            return ABORT, (
                f"{pair} passes llama.cpp's support test on CUDA and HIP but has no kernel for decoding: "
                "the server aborts at the first generated token"
            )
    elif a.head_k == 512:
        # MMA on CUDA needs a ratio above 2 (fattn.cu:408-415), TILE on HIP a multiple of 4 (fattn-tile.cuh)
        if device.backend == "cuda" and a.gqa <= 2:
            return ABORT, f"head size 512 with a GQA ratio of {a.gqa} aborts on CUDA (it must be above 2)"
        if device.backend == "rocm" and a.gqa % 4:
            return ABORT, f"head size 512 with a GQA ratio of {a.gqa} aborts on HIP (it must be a multiple of 4)"
    return OK, ""


class _Verdict:
    """What is known against a configuration, collected in the order the program would meet it."""

    def __init__(self) -> None:
        self.starts = True
        self.accepted = True
        self.reasons: list[str] = []
        self.warnings: list[str] = []

    def refuse(self, reason: str) -> None:
        self.starts = self.accepted = False
        self.reasons.append(reason)

    def reject(self, reason: str) -> None:
        self.accepted = False
        self.reasons.append(reason)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def _check_types(v: _Verdict, h: HParams, build: Build, o: Mapping[str, Any], fa_asked: str) -> None:
    """llama_init_from_model (llama-context.cpp:2942-3014): block sizes against head sizes."""
    if fa_asked == "off":
        return
    for side, name, heads in (("K", o["cache_type_k"], h.head_k), ("V", o["cache_type_v"], h.head_v)):
        size: TypeSize = build.cache_types[name]
        if not size.quantized:
            continue
        for head in dict.fromkeys(heads):
            stored = head
            if is_turbo(name) and head % 128 and not (side == "V" and h.is_mla):
                stored = pad(head, 128)
            if stored % size.block:
                v.refuse(
                    f"{side} cache type {name} has blocks of {size.block} values, which do not divide the head size "
                    f"{head}; f16 works"
                )
                break


def _resolve_flash_attention(
    v: _Verdict,
    model: Model,
    build: Build,
    o: Mapping[str, Any],
    env: Mapping[str, str],
    c: Context,
    p: Placement,
) -> tuple[bool, bool]:
    """(caches built for flash attention, flash attention in the graph)."""
    h = model.hparams
    asked = o["flash_attn"]
    type_k, type_v = o["cache_type_k"], o["cache_type_v"]
    if h.arch == "grok" and asked != "off":
        v.warn("flash attention does not work with grok and is turned off")
        asked = "off"
    turbo = is_turbo(type_k) or is_turbo(type_v)
    quantized_v = build.cache_types[type_v].quantized
    if o["split_mode"] == "tensor":
        if asked == "off":
            v.refuse("split_mode tensor needs flash attention: drop flash_attn off")
        if build.cache_types[type_k].quantized or quantized_v:
            v.refuse("split_mode tensor does not take a quantized cache: use f16 or bf16, or split_mode layer")
        asked = "on"
    _check_types(v, h, build, o, asked)
    if asked == "off" and turbo:
        v.warn("turbo cache types need flash attention: llama-server turns it on although flash_attn is off")
        asked = "on"
    if asked == "off" and quantized_v:
        v.refuse(
            f"V of type {type_v} needs flash attention, and flash_attn is off (llama-server then crashes): "
            "set flash_attn to auto or on, or cache_type_v to f16"
        )
    built = asked != "off"
    if not built:
        return False, False
    # -fa auto asks the scheduler where the operation lands; -fa on does not ask
    caches = kv_caches(model, build, c, o, env, True)
    on_cpu = 0
    aborts = why = ""
    for index, device in enumerate(p.devices):
        verdicts = attention_verdicts(model, build, device, caches, o["fa_all_quants"])
        for il, reason in verdicts.unsupported.items():
            if p.layers[il] == index:
                on_cpu += 1
                why = why or f"layer {il} on {device.name}: {reason}"
        for il, reason in verdicts.aborts.items():
            if p.layers[il] == index:
                aborts = aborts or f"layer {il} on {device.name}: {reason}"
    if on_cpu and asked == "auto":
        if quantized_v:
            v.refuse(
                f"flash attention is not possible ({why}) and V of type {type_v} needs it: the program ends with "
                f"'quantized V cache was requested, but this requires Flash Attention'. "
                + _nearest_pair(model, build, o, env, c, p)
            )
        else:
            v.warn(f"flash attention is turned off ({why}): attention is slower and its compute buffer larger")
        return True, False
    if on_cpu:
        v.reject(
            f"attention of {on_cpu} layers runs on the CPU ({why}): flash_attn on does not check that. "
            + _nearest_pair(model, build, o, env, c, p)
        )
    elif aborts:
        v.reject(f"{aborts}. " + _nearest_pair(model, build, o, env, c, p))
    return True, True


# From the least lossy to the smallest, by the perplexity figures of docs/choosing_cache_types.
_PAIRS = (
    ("f16", "f16"),
    ("q8_0", "q8_0"),
    ("q8_0", "turbo4"),
    ("q8_0", "turbo3"),
    ("turbo4", "turbo4"),
    ("q4_0", "q4_0"),
    ("turbo3", "turbo3"),
)


def _pair_runs(
    model: Model,
    build: Build,
    o: Mapping[str, Any],
    env: Mapping[str, str],
    c: Context,
    p: Placement,
    pair: tuple[str, str],
) -> bool:
    if pair[0] not in build.cache_types or pair[1] not in build.cache_types:
        return False
    choice = dict(o, cache_type_k=pair[0], cache_type_v=pair[1])
    probe = _Verdict()
    _check_types(probe, model.hparams, build, choice, "on")
    caches = kv_caches(model, build, c, choice, env, True)
    for index, device in enumerate(p.devices):
        verdicts = attention_verdicts(model, build, device, caches, o["fa_all_quants"])
        if any(p.layers[il] == index for side in (verdicts.unsupported, verdicts.aborts) for il in side):
            return False
    return probe.starts


def _nearest_pair(
    model: Model, build: Build, o: Mapping[str, Any], env: Mapping[str, str], c: Context, p: Placement
) -> str:
    """The smallest pair of the ladder that is not larger than asked, else the next larger one that runs."""
    asked = build.cache_types[o["cache_type_k"]].bits + build.cache_types[o["cache_type_v"]].bits
    runs = [pair for pair in _PAIRS if _pair_runs(model, build, o, env, c, p, pair)]
    if not runs:
        return "No cache-type pair has flash attention for this model there: use f16/f16 with flash_attn auto"
    bits = {pair: build.cache_types[pair[0]].bits + build.cache_types[pair[1]].bits for pair in runs}
    smaller = [pair for pair in runs if bits[pair] <= asked]
    best = max(smaller, key=lambda pair: bits[pair]) if smaller else min(runs, key=lambda pair: bits[pair])
    hint = f"The nearest pair that runs is {best[0]}/{best[1]}"
    if _asymmetric(model.hparams, build, o["cache_type_k"], o["cache_type_v"], env):
        free = dict(env, TURBO_AUTO_ASYMMETRIC="0")
        if _pair_runs(model, build, o, free, c, p, (o["cache_type_k"], o["cache_type_v"])):
            hint += "; with TURBO_AUTO_ASYMMETRIC=0 in its environment the asked pair runs too"
    return hint


_NOTHING = dict.fromkeys(("weights", "kv", "recurrent", "compute", "output", "other"), 0)


def _note(kind: str, device: str, nbytes: int, counted: bool, source: str) -> dict[str, Any]:
    return {"what": kind, "device": device, "bytes": nbytes, "counted": counted, "source": source}


# What a CUDA context takes: 388 to 402 MiB "unaccounted" on four RTX 3090 (ggml-org/llama.cpp#21730), with the
# pools of the kernels; 320 MiB on other reports.
DRIVER_CONTEXT = {"cuda": 402 * MIB, "rocm": 402 * MIB, "vulkan": 64 * MIB}


def _fa_scratch(build: Build, device: Device, ops: Sequence[Attention], h: HParams, cells: Mapping[int, int]) -> int:
    """f16 copy of one layer's quantized K and V (fattn-common.cuh:1340-1400), the largest layer of the device."""
    largest = 0
    for a in ops:
        k, v = build.cache_types[a.type_k], build.cache_types[a.type_v]
        if not (k.quantized or v.quantized or "bf16" in (a.type_k, a.type_v) or "f32" in (a.type_k, a.type_v)):
            continue
        if device.backend == "rocm" and a.head_k <= 256:
            continue  # HIP takes the VEC kernel, which reads quantized values itself (fattn.cu, GGML_USE_HIP)
        size = 0
        if a.type_k != "f16":
            size += a.head_k * h.n_head_kv[a.il] * 2
        if a.type_v != "f16":
            size += a.head_v * h.n_head_kv[a.il] * 2
        largest = max(largest, size * cells.get(a.il, 0))
    return largest


def memory_budget(
    model: Mapping[str, Any] | Model,
    devices: Iterable[Mapping[str, Any]] | None = (),
    options: Mapping[str, Any] | None = None,
    build: str = DEFAULT_BUILD,
    env: Mapping[str, Any] | None = None,
    program: str | None = None,
    fa_all_quants: bool | None = None,
) -> dict[str, Any]:
    """The memory of one server, and whether it starts. See the filter's documentation for the result."""
    rules = get_build(build)
    loaded = load_model(model)
    o = parse_options(options, rules, program)
    if fa_all_quants is not None:
        o["fa_all_quants"] = _parse("fa_all_quants", "bool", fa_all_quants, rules)
    gpus = parse_devices(devices)
    if env is not None and not isinstance(env, Mapping):
        raise ValueError(f"env is {env!r:.80}, must be a dictionary of environment variables")
    variables = {str(k): str(v) for k, v in (env or {}).items()}
    return _budget(loaded, gpus, o, rules, variables)


def _budget(
    model: Model, gpus: tuple[Device, ...], o: dict[str, Any], build: Build, env: Mapping[str, str]
) -> dict[str, Any]:
    h = model.hparams
    v = _Verdict()
    if build.name == DEFAULT_BUILD and h.arch not in KNOWN_ARCHITECTURES:
        v.refuse(
            f"architecture {h.arch} is unknown to build {build.name}: it ends with 'unknown model architecture'; "
            "a newer build may know it"
        )
    p = remembered_placement(model, gpus, o)
    c = context_sizes(h, o, o["ctx_size"])
    if c.n_seq > MAX_SEQUENCES:
        v.refuse(f"parallel is {c.n_seq}: llama.cpp takes at most {MAX_SEQUENCES} sequences")
    if c.n_batch < 2 and o["program"] == "llama-server":
        v.refuse("a context of 1 token gives a batch of 1, and the server's warm-up aborts: use ctx_size 256 or more")
    built_fa, graph_fa = _resolve_flash_attention(v, model, build, o, env, c, p)
    caches = kv_caches(model, build, c, o, env, built_fa)
    _check_storage_range(v, p, o, caches)
    weights_key = _weights_key(p, o)
    weights = _remembered_weights(model, p, o, weights_key)
    _warn_policies(v, h, build, o, env, c, caches)
    for text in reported_wrong(build, (d.backend for d in p.devices), o["cache_type_k"], o["cache_type_v"]):
        v.warn(f"{text}: compare answers with those of f16 before it serves, or build for ROCm")
    # With a GPU its host buffers come first in make_cpu_buft_list (llama-model.cpp:538-597), and without mmap a tensor
    # is in one buffer or the other.
    if not p.devices and o["repack"] and o["mmap"] and model.repackable_bytes:
        v.warn(
            f"the processor may keep up to {model.repackable_bytes / MIB:.0f} MiB of weights a second time, in the form"
            " it computes with (CPU_REPACK), which is not counted; --no-repack, with slower prompts, avoids it"
        )

    names = [d.name for d in p.devices]
    parts: dict[str, dict[str, int]] = {name: dict(_NOTHING) for name in [*[d.name for d in gpus], HOST]}

    def row(buffer: int | str) -> dict[str, int]:
        return parts[names[buffer] if isinstance(buffer, int) and buffer >= 0 else HOST]

    for buffer, nbytes in weights.bytes.items():
        row(buffer)["weights"] += nbytes
    listed = []
    for cache in caches:
        n = cache.cells * cache.streams
        for (owner, cell, padding), count in cache.form.allocations(build, p, o["kv_offload"]).items():
            align = p.devices[owner].align if owner >= 0 else CPU_ALIGN
            row(owner)["kv"] += pad(cell * n + padding, align) * count
        if cache.rotation:
            owner = p.layers[cache.layers[0].il] if o["kv_offload"] else -1
            align = p.devices[owner].align if owner >= 0 else CPU_ALIGN
            row(owner)["kv"] += sum(pad(size, align) for size in ROTATION_BYTES)
        listed.append(
            {
                "kind": cache.kind,
                "cells": cache.cells,
                "layers": list(cache.form.numbers),
                "type_k": cache.type_k,
                "type_v": cache.type_v,
                "k_bytes": cache.k_bytes,
                "v_bytes": cache.v_bytes,
            }
        )
    recurrent = h.recurrent_layers()
    if recurrent:
        r_bytes, s_bytes = 4 * h.n_embd_r * c.n_seq, 4 * h.n_embd_s * c.n_seq
        for il in recurrent:
            owner = p.layers[il] if o["kv_offload"] else -1
            align = p.devices[owner].align if owner >= 0 else CPU_ALIGN
            row(owner)["recurrent"] += pad(r_bytes, align) + pad(s_bytes, align)
        listed.append(
            {
                "kind": "recurrent",
                "cells": c.n_seq,
                "layers": recurrent,
                "type_k": "f32",
                "type_v": "f32",
                "k_bytes": r_bytes * len(recurrent),
                "v_bytes": s_bytes * len(recurrent),
            }
        )
    output = _output_bytes(h, c, o)
    if p.output >= 0 and p.devices[p.output].backend == "vulkan":
        output += 32  # ggml-vulkan.cpp pads a host buffer by its alignment
    parts[HOST]["output"] = output

    setup = _compute.Setup(
        model=model,
        build=build,
        options=o,
        env=env,
        context=c,
        caches=caches,
        placement=p,
        weights=weights,
        weights_key=weights_key,
        flash_attn=graph_fa,
        v_trans=not built_fa,
        fa_unsupported=[
            attention_verdicts(model, build, d, caches, o["fa_all_quants"]).unsupported_layers for d in p.devices
        ]
        if graph_fa
        else [],
    )
    computed = _compute.compute_buffers(setup)
    if computed.error:
        v.refuse(computed.error)
    for owner, nbytes in computed.bytes.items():
        row(owner)["compute"] += nbytes
    for text in computed.warnings:
        v.warn(text)

    notes = _other(v, model, build, o, c, p, caches, parts, built_fa and graph_fa)
    for name, part in parts.items():
        part["total"] = sum(part.values())
        if name != HOST and p.devices:
            _check_capacity(v, next(d for d in gpus if d.name == name), part, o)
    return {
        "starts": v.starts,
        "accepted": v.starts and v.accepted,
        "reason": " ".join(v.reasons),
        "warnings": v.warnings,
        "context": {
            "n_ctx": c.n_ctx,
            "n_ctx_seq": c.n_ctx_seq,
            "n_parallel": c.n_seq,
            "n_ubatch": c.n_ubatch,
            "kv_unified": c.kv_unified,
        },
        "caches": listed,
        "devices": parts,
        "total": sum(part["total"] for part in parts.values()),
        "notes": notes,
        "build": {"name": build.name, "source": build.source},
    }


def _check_storage_range(v: _Verdict, p: Placement, o: Mapping[str, Any], caches: Sequence[Cache]) -> None:
    """A K or V larger than what Vulkan binds has no operation that writes it: the scheduler aborts."""
    if not o["kv_offload"] or all(d.backend != "vulkan" for d in p.devices):
        return
    for cache in caches:
        for layer in cache.layers:
            owner = p.layers[layer.il]
            if owner < 0 or p.devices[owner].backend != "vulkan":
                continue
            device, nbytes = p.devices[owner], max(layer.k_row, layer.v_row) * cache.cells * cache.streams
            if nbytes > device.storage_range:
                v.refuse(
                    f"the cache of layer {layer.il} has {nbytes} bytes, more than the {device.storage_range} that "
                    f"{device.name} can bind (maxStorageBufferRange): choose a smaller ctx_size or cache type"
                )
                return
            if not device.storage_known and nbytes > LEAST_STORAGE_RANGE:
                v.warn(
                    f"how much {device.name} can bind (maxStorageBufferRange) is not known and taken "
                    f"as {device.storage_range} bytes, as of AMD's and NVIDIA's drivers. A layer's cache has {nbytes}; "
                    f"a device with the {LEAST_STORAGE_RANGE} that Vulkan guarantees, as llvmpipe, would not start: "
                    "give the device its max_storage_buffer_range (vulkaninfo)"
                )
                break


def _output_bytes(h: HParams, c: Context, o: Mapping[str, Any]) -> int:
    """llama_context::output_reserve (llama-context.cpp:1888); a GPU's host buffer rounds nothing but Vulkan's 32."""
    values = h.n_vocab * c.n_seq
    if o["embeddings"] or h.arch == "t5":
        values += int(h.get("embedding_length_out", 0) or h.n_embd) * c.n_seq
    return 4 * values


def _row_padding(build: Build, p: Placement, owner: int, ne: int, type_name: str) -> int:
    """CUDA pads the last row of a quantized tensor to 512 values (ggml_backend_cuda_buffer_type_get_alloc_size)."""
    size = build.cache_types[type_name]
    if owner >= 0 and p.devices[owner].is_cuda and size.quantized and ne % CUDA_ROW_PADDING:
        return size.row(CUDA_ROW_PADDING - ne % CUDA_ROW_PADDING)
    return 0


def _weights_key(p: Placement, o: Mapping[str, Any]) -> tuple[Any, ...]:
    """Weights depend on few options."""
    return (
        "weights",
        p.layers,
        p.output,
        tuple((d.name, d.backend, d.storage_range) for d in p.devices),
        overrides(o),
        o["mmap"],
        o["no_host"],
    )


def _remembered_weights(model: Model, p: Placement, o: Mapping[str, Any], key: tuple[Any, ...]) -> Weights:
    result: Weights | None = model.memo.get(key)
    if result is None:
        result = place_weights(model, p, o)
        model.memo[key] = result
    return result


def _warn_policies(
    v: _Verdict,
    h: HParams,
    build: Build,
    o: Mapping[str, Any],
    env: Mapping[str, str],
    c: Context,
    caches: Sequence[Cache],
) -> None:
    """Policies that change what was asked without a word in the answer of the server."""
    type_k, type_v = o["cache_type_k"], o["cache_type_v"]
    if caches and _asymmetric(h, build, type_k, type_v, env):
        v.warn(
            f"auto-asymmetric: {type_k}/{type_v} becomes q8_0/{type_v}, because layer 0 has {h.n_head[0]} heads on "
            f"{h.n_head_kv[0]} KV heads (6:1 or more); TURBO_AUTO_ASYMMETRIC=0 keeps {type_k}"
        )
    mode = adaptive_mode(h, build, type_v, env)
    changed = [
        layer
        for cache in caches
        for layer in (cache.layers if mode else ())
        if layer.type_k != cache.type_k or (layer.type_v and layer.type_v != cache.type_v)
    ]
    if changed:
        cause = "TURBO_LAYER_ADAPTIVE" if "TURBO_LAYER_ADAPTIVE" in env else "Boundary V, switched on by V = turbo2,"
        found = sorted({f"{layer.type_k}/{layer.type_v}" if layer.type_v else layer.type_k for layer in changed})
        v.warn(
            f"{cause} (mode {mode}) changes the types of {len(changed)} layers to {', '.join(found)}; "
            "TURBO_LAYER_ADAPTIVE=0 turns it off"
        )
    if type_v == "turbo2" and build.layer_adaptive:
        v.warn("turbo2 for V is the most lossy type: use it only where nothing else fits")
    swa = next((cache for cache in caches if cache.kind == "swa"), None)
    if swa is not None and swa.layers and c.n_seq > 1:
        one = swa.cells
        single = c.n_ctx_seq if o["swa_full"] else pad(min(c.n_ctx_seq, h.n_swa + c.n_ubatch), 256)
        times = one * c.n_stream / single if single else 1.0
        if times > 1:
            slots = "the default of four slots" if o["parallel"] < 0 else f"{c.n_seq} slots"
            v.warn(
                f"{slots} make the sliding-window cache {times:.1f} times that of one slot; "
                f"parallel 1 gives {single} cells"
            )


def _check_capacity(v: _Verdict, device: Device, part: Mapping[str, int], o: Mapping[str, Any]) -> None:
    """Whether it fits: a real load fails when it does not; llama-fit-params allocates nothing."""
    if o["program"] != "llama-server" or device.free == 0:
        return
    missing = part["total"] - device.free
    if missing <= 0:
        return
    text = (
        f"{device.name} needs {part['total'] / MIB:.0f} MiB and has {device.free / MIB:.0f} MiB free, "
        f"{missing / MIB:.0f} MiB too little"
    )
    adjustable = o["fit"] and not o["override_tensor"] and not o["cpu_moe"] and not o["n_cpu_moe"]
    if adjustable and (o["n_gpu_layers"] < 0 or o["ctx_size"] == 0):
        v.reject(text + ": --fit (on by default) would shrink the context or move layers to the CPU")
    elif part["total"] - part["other"] > device.free:
        v.refuse(text + ": the allocation fails")
    else:
        v.reject(text + ": it starts and runs out of memory later")


def _other(
    v: _Verdict,
    model: Model,
    build: Build,
    o: Mapping[str, Any],
    c: Context,
    p: Placement,
    caches: Sequence[Cache],
    parts: dict[str, dict[str, int]],
    fa: bool,
) -> list[dict[str, Any]]:
    """What no log line shows. It counts for the server; llama-fit-params, which runs nothing, leaves it out."""
    h = model.hparams
    counted = o["program"] == "llama-server"
    notes: list[dict[str, Any]] = []

    def add(kind: str, device: str, nbytes: int, source: str) -> None:
        if nbytes <= 0:
            return
        notes.append(_note(kind, device, nbytes, counted, source))
        if counted:
            parts[device]["other"] += nbytes

    cells = {layer.il: cache.cells * c.n_stream for cache in caches for layer in cache.layers} if p.devices else {}
    ops = attention_ops(model, caches) if p.devices else []
    for index, device in enumerate(p.devices):
        if any(layer == index for layer in p.layers) or p.output == index:
            add(
                "context of the driver",
                device.name,
                DRIVER_CONTEXT[device.backend],
                "388 to 402 MiB unaccounted on RTX 3090 (ggml-org/llama.cpp#21730); an estimate, the same for HIP",
            )
        if fa and device.is_cuda:
            mine = [a for a in ops if p.layers[a.il] == index]
            for a in mine:
                if a.il not in cells:
                    cells[a.il] = cells.get(h.kv_from_start - (2 if h.swa[a.il] else 1), 0)
            add(
                "f16 copy of quantized K and V for flash attention",
                device.name,
                _fa_scratch(build, device, mine, h, cells),
                "ggml-cuda/fattn-common.cuh:1340-1400: taken from the pool at the first long prompt and kept"
                if build.fa_scratch_in_pool
                else "ggml-org/llama.cpp#23907: part of the compute buffer from 2026-06 on",
            )
    if o["mmproj_bytes"]:
        target = p.devices[0].name if p.devices and o["mmproj_offload"] else HOST
        add("multimodal projector", target, o["mmproj_bytes"], "option mmproj_bytes: the size of the projector's file")
    if counted:
        if o["cache_ram"] < 0:
            v.warn("cache_ram -1 has no limit: the prompt cache may take all RAM")
        add("prompt cache, at most", HOST, max(o["cache_ram"], 0) * MIB, "common/common.h:571-573, option cache_ram")
        add(
            "context checkpoints, at most",
            HOST,
            _checkpoint_bytes(h, c, o, caches),
            f"{o['ctx_checkpoints']} for each slot, each a copy of the sliding-window cells or recurrent state of one "
            "sequence (server-context.cpp, option ctx_checkpoints)",
        )
    return notes


def _checkpoint_bytes(h: HParams, c: Context, o: Mapping[str, Any], caches: Sequence[Cache]) -> int:
    """A checkpoint holds what cannot be rolled back: the window's cells and the recurrent state of a sequence."""
    one = 0
    if not o["swa_full"]:
        for cache in caches:
            if cache.kind == "swa" and cache.cells:
                held = min(h.n_swa, cache.cells)
                one += (cache.form.k_row + cache.form.v_row) * held
    recurrent = h.recurrent_layers()
    one += len(recurrent) * 4 * (h.n_embd_r + h.n_embd_s)
    return int(one * c.n_seq * o["ctx_checkpoints"])


def kv_cache_bytes(
    model: Mapping[str, Any] | Model,
    options: Mapping[str, Any] | None = None,
    build: str = DEFAULT_BUILD,
    env: Mapping[str, Any] | None = None,
    program: str | None = None,
) -> int:
    """Bytes of all K/V caches and recurrent states, as the log's `size =` lines add up."""
    rules = get_build(build)
    loaded = load_model(model)
    o = parse_options(options, rules, program)
    h = loaded.hparams
    c = context_sizes(h, o, o["ctx_size"])
    variables = {str(k): str(v) for k, v in (env or {}).items()}
    turbo = is_turbo(o["cache_type_k"]) or is_turbo(o["cache_type_v"])
    caches = kv_caches(loaded, rules, c, o, variables, o["flash_attn"] != "off" or turbo)
    total = sum(cache.k_bytes + cache.v_bytes for cache in caches)
    return total + len(h.recurrent_layers()) * 4 * (h.n_embd_r + h.n_embd_s) * c.n_seq
