# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute buffers: what the graph's intermediate results take on each device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.llamafleet.turboquant.plugins.module_utils._hparams import HParams


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
    flash_attn: bool
    v_trans: bool
    fa_on_cpu: frozenset[int]


class Compute(NamedTuple):
    """Bytes by device index (-1 is the host), and what went wrong."""

    bytes: dict[int, int]
    error: str
    warnings: list[str]


def uses_alibi(h: HParams) -> bool:
    """f_max_alibi_bias > 0 (llama-model.cpp): attention without rope, with a bias by distance."""
    if h.arch in ("refact", "bloom", "jina-bert-v2"):
        return True
    if h.arch == "baichuan":
        return h.n_layer == 40
    return h.arch in ("mpt", "jais") and float(h.get("attention.max_alibi_bias", 0.0)) > 0.0


def host_closed_form(s: Setup) -> int:
    """Host buffer with every layer on one GPU and flash attention: exact (docs/memory_model.md)."""
    h, c = s.model.hparams, s.context
    tokens = -(-min(c.n_ctx, c.n_ubatch) // c.n_seq) * c.n_seq
    size = tokens * (8 * h.n_embd + 4 + 4 * _positions(s) + 4)
    for cache in s.caches:
        has_v = any(layer.type_v for layer in cache.layers)
        size += 4 * tokens * cache.cells + 8 * tokens + (8 * tokens if has_v else 0)
    if h.recurrent_layers():
        size += 32
    if h.n_embd_per_layer:
        size += 4 * tokens * h.n_embd_per_layer * h.n_layer + 4 * tokens
    return int(size)


def _positions(s: Setup) -> int:
    h = s.model.hparams
    if h.arch == "granitehybrid" and not h.get("rope.scaling.finetuned", True):
        return 0
    return int(h.n_pos)


def compute_buffers(s: Setup) -> Compute:
    """Buffers of every device."""
    h, c = s.model.hparams, s.context
    tokens = -(-min(c.n_ctx, c.n_ubatch) // c.n_seq) * c.n_seq
    cells = sum(cache.cells for cache in s.caches)
    logits = tokens * 4 * (h.n_vocab + h.n_embd)
    heads = max((h.n_head[il] * h.head_k[il] for il in range(h.n_layer)), default=0)
    attention = tokens * 6 * cells + tokens * (8 * h.n_embd + 8 * heads)
    device = max(logits, attention)
    if not s.flash_attn:
        device += tokens * 4 * max(h.n_head) * max((cache.cells for cache in s.caches), default=0)
    host = host_closed_form(s)
    used = sorted({*s.placement.layers, s.placement.output} - {-1})
    if not used:
        return Compute({-1: host + device}, "", [])
    result = dict.fromkeys(used, device)
    result[-1] = host
    return Compute(result, "", [])
