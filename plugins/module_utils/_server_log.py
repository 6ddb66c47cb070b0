# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What llama-server allocated, read from its own log.

The fork writes the lines bare, newer builds put a time, a level and a module before them; some libraries write into the
middle of a line. So each pattern is searched for and never anchored.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import re
from typing import Any

MIB = 1 << 20
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s*([0-9.]+) MiB")
_CACHE = re.compile(
    r"size =\s*([0-9.]+) MiB \(\s*(\d+) cells,\s*(\d+) layers,\s*(\d+)(?:/(\d+))? seqs\), "
    r"([KR]) \((\w+)\):\s*([0-9.]+) MiB, ([VS]) \((\w+)\):\s*([0-9.]+) MiB"
)
_SPLITS = re.compile(r"graph splits = (\d+)(?: \(with bs=\d+\), (\d+))?")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_CONTEXT = re.compile(r"\b(n_ctx|n_ctx_seq|n_ctx_per_seq|n_batch|n_ubatch|n_seq_max)\s+= (\d+)")
_FLASH = re.compile(r"flash_attn\s+= (\w+)")
_PROBLEM = re.compile(r"error|failed|abort|terminate|invalid|exception|cannot|couldn't|out of memory", re.IGNORECASE)


def host_buffer(name: str) -> bool:
    """True for memory of the host: CPU, CPU_Mapped, CPU_REPACK, CUDA_Host, Vulkan_Host ..."""
    return name.startswith("CPU") or name.endswith("_Host") or name == "BLAS"


def parse_log(text: str) -> dict[str, Any]:
    """Return the sizes in bytes by kind and device, as exact as the log's hundredths of a MiB.

    The text is that of one start; a draft model loaded by the same process is added to the model's own buffers.
    """
    body = text
    buffers: dict[str, dict[str, int]] = {"model": {}, "KV": {}, "RS": {}, "compute": {}, "output": {}}
    for device, kind, size in _BUFFER.findall(body):
        held = buffers[kind]
        held[device] = held.get(device, 0) + round(float(size) * MIB)
    caches = []
    for match in _CACHE.finditer(body):
        size, cells, layers, seqs, streams, first_kind, type_k, size_k, _second, type_v, size_v = match.groups()
        caches.append(
            {
                "kind": "kv" if first_kind == "K" else "recurrent",
                "bytes": round(float(size) * MIB),
                "cells": int(cells),
                "layers": int(layers),
                "seqs": int(seqs),
                "streams": int(streams or seqs),
                "type_k": type_k,
                "type_v": type_v,
                "bytes_k": round(float(size_k) * MIB),
                "bytes_v": round(float(size_v) * MIB),
            }
        )
    splits = [int(value) for pair in _SPLITS.findall(body) for value in pair if value]
    offloaded = _OFFLOADED.search(body)
    context = {name: int(value) for name, value in _CONTEXT.findall(body)}
    flash = _FLASH.search(body)
    return {
        "model_buffers": buffers["model"],
        "kv_buffers": buffers["KV"],
        "rs_buffers": buffers["RS"],
        "compute_buffers": buffers["compute"],
        "output_buffers": buffers["output"],
        "caches": caches,
        "kv_bytes": sum(cache["bytes"] for cache in caches if cache["kind"] == "kv"),
        "total_bytes": sum(size for held in buffers.values() for size in held.values()),
        "graph_splits": max(splits) if splits else None,
        "layers_offloaded": None if offloaded is None else [int(offloaded[1]), int(offloaded[2])],
        "context": context,
        "flash_attn": None if flash is None else flash[1],
        "complete": bool(caches or buffers["RS"]) and bool(buffers["compute"]),
    }


def last_words(text: str, count: int = 12) -> str:
    """The end of a log for a person: the last lines, and before them those that tell of a problem."""
    # systemd says this of every unit in a container without the pids controller.
    noise = "Failed to read pids.max for control group"
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and noise not in line]
    tail = lines[-count:]
    problems = [line for line in lines[:-count] if _PROBLEM.search(line)][-4:]
    return "\n".join(problems + tail)


def compare(
    measured: dict[str, Any], predicted: dict[str, Any] | None, tolerance: float = 0.05
) -> tuple[list[str], dict[str, Any]]:
    """Say where the log contradicts the plan, and return the figures side by side.

    predicted holds kv_bytes and, where known, total_bytes. The caches must agree to the log's resolution; of the total
    the compute buffers depend on the allocator, so it has a tolerance. Weights that the processor keeps a second time,
    in a form that depends on its instructions (CPU_REPACK, AMX), are no part of the plan: with a mapped file they come
    on top of it, otherwise they take the place of as many bytes.
    """
    problems: list[str] = []
    figures: dict[str, Any] = {
        "kv_predicted": None, "kv_measured": measured["kv_bytes"],
        "total_predicted": None, "total_measured": measured["total_bytes"],
    }  # fmt: skip
    if not predicted:
        return problems, figures
    figures["kv_predicted"] = predicted.get("kv_bytes")
    figures["total_predicted"] = predicted.get("total_bytes")
    if not measured["complete"]:
        problems.append("the server's log shows no cache and compute sizes, so the plan cannot be confirmed")
        return problems, figures
    caches = [cache for cache in measured["caches"] if cache["kind"] == "kv"]
    if predicted.get("kv_bytes") is not None:
        # Each printed size is rounded to 0.01 MiB.
        slack = (0.005 * MIB + 1) * max(1, len(caches))
        if abs(measured["kv_bytes"] - predicted["kv_bytes"]) > slack:
            problems.append(
                f"KV cache: predicted {predicted['kv_bytes'] / MIB:.2f} MiB, the server allocated "
                f"{measured['kv_bytes'] / MIB:.2f} MiB"
            )
    if predicted.get("total_bytes"):
        second = sum(size for name, size in measured["model_buffers"].items() if name in ("CPU_REPACK", "AMX"))
        ratios = [(measured["total_bytes"] - part) / predicted["total_bytes"] - 1 for part in (0, second)]
        ratio = min(ratios, key=abs)
        if abs(ratio) > tolerance:
            problems.append(
                f"all buffers: predicted {predicted['total_bytes'] / MIB:.2f} MiB, the server allocated "
                f"{measured['total_bytes'] / MIB:.2f} MiB ({100 * ratio:+.1f} %, allowed {100 * tolerance:.0f} %)"
            )
    return problems, figures


def on_gpu(measured: dict[str, Any], max_splits: int | None, all_layers: bool) -> list[str]:
    """Say what shows that a server that should use a GPU works on the CPU."""
    problems = []
    devices = sorted(
        name for kind in ("model_buffers", "kv_buffers") for name in measured[kind] if not host_buffer(name)
    )
    if not devices:
        problems.append("no model or cache buffer lies on a GPU: the server works on the CPU")
    if all_layers and any(host_buffer(name) and size for name, size in measured["kv_buffers"].items()):
        problems.append("part of the KV cache lies in host memory, although all layers were to be on the GPU")
    splits = measured["graph_splits"]
    if max_splits is not None and splits is not None and splits > max_splits:
        problems.append(
            f"the graph has {splits} splits, more than {max_splits}: operations (usually attention) fall back to "
            "the CPU; choose cache types that this backend computes"
        )
    return problems
