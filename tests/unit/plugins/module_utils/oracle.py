# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The measured rows of tests/data/oracle, and how to ask the planner the same questions."""

from __future__ import annotations

import functools
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _memory

DATA = Path(__file__).resolve().parents[3] / "data" / "oracle"
LLVMPIPE_STORAGE_RANGE = 2**27

_VALUES = {
    "-c": "ctx_size",
    "-ctk": "cache_type_k",
    "-ctv": "cache_type_v",
    "-np": "parallel",
    "-ub": "ubatch_size",
    "-b": "batch_size",
    "-fa": "flash_attn",
    "-ngl": "n_gpu_layers",
    "-ot": "override_tensor",
    "-ncmoe": "n_cpu_moe",
    "-ts": "tensor_split",
    "-sm": "split_mode",
}
_WORDS = {"cache_type_k", "cache_type_v", "flash_attn", "override_tensor", "tensor_split", "split_mode"}
_FLAGS = {
    "--no-repack": ("repack", False),
    "--no-kv-unified": ("kv_unified", False),
    "--kv-unified": ("kv_unified", True),
    "-nkvo": ("kv_offload", False),
    "--swa-full": ("swa_full", True),
    "--no-op-offload": ("op_offload", False),
    "--no-mmap": ("mmap", False),
    "-cmoe": ("cpu_moe", True),
}


@functools.cache
def rows() -> list[dict[str, Any]]:
    with gzip.open(DATA / "rows.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@functools.cache
def header(name: str) -> dict[str, Any]:
    with gzip.open(DATA / "models" / f"{name}.json.gz", "rt", encoding="utf-8") as text:
        return json.load(text)


@functools.cache
def loaded(name: str) -> _memory.Model:
    return _memory.load_model(header(name))


def options(args: list[str]) -> dict[str, Any]:
    """The row's command line in the planner's words."""
    result: dict[str, Any] = {}
    words = iter(args)
    for word in words:
        if word in _VALUES:
            name, value = _VALUES[word], next(words)
            result[name] = value if name in _WORDS else int(value)
        else:
            name, flag = _FLAGS[word]
            result[name] = flag
    return result


def devices(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row["backend"] == "cpu":
        return []
    if row["backend"] == "vulkan":
        return [{"name": "Vulkan0", "backend": "vulkan", "max_storage_buffer_range": LLVMPIPE_STORAGE_RANGE}]
    return [
        {"name": f"CUDA{i}", "backend": "cuda", "total_bytes": d["total_mib"] << 20, "free_bytes": d["free_mib"] << 20}
        for i, d in enumerate(row["devices"])
    ]


def predict(row: dict[str, Any]) -> dict[str, Any]:
    return _memory.memory_budget(
        loaded(row["model"]),
        devices=devices(row),
        options=options(row["args"]),
        env=row["env"],
        program=row["program"],
        fa_all_quants=row["fa_all_quants"],
    )


def measured(row: dict[str, Any], part: str) -> Counter[str]:
    """Bytes of one kind of buffer by device; every CPU-side buffer counts for the host."""
    total: Counter[str] = Counter()
    for buffer in row["sizes"][part]:
        name = buffer["buft"]
        on_device = name.startswith(("CUDA", "Vulkan")) and not name.endswith("_Host")
        total[name if on_device else _memory.HOST] += buffer["bytes"]
    return total
