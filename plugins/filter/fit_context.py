# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter fit_context."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fit_context
short_description: Choose the context and the cache types that fit the memory of a host
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - Takes the header of a model and the memory of a host, and returns the options of C(llama-server) that give the
    wanted context with the least loss, so that every device keeps a headroom.
  - Cache types are tried in an order of preference, the ladder. The first pair that reaches O(max_ctx) is taken. When
    none does, it is the pair that gets furthest; of two that get equally far, the earlier one.
  - The default ladder is C(f16/f16), C(q8_0/q8_0), C(q8_0/turbo4), C(q8_0/turbo3), C(turbo4/turbo4), C(q4_0/q4_0),
    C(turbo3/turbo3), the least lossy first by the published perplexities (turbo4 +0.23 percent over q8_0, q4_0 +0.52,
    turbo3 +1.06). Pairs that keep K in q8_0 stand before those that do not, because K is what breaks (Qwen2.5-7B with
    both types turbo4 has a perplexity of 218, with q8_0/turbo4 one percent more than without). turbo2 (+6.5) is left
    out; q8_0/turbo2 is larger than turbo3/turbo3, because a turbo2 V keeps its outer layers in q8_0.
  - A pair is left when the program refuses it on those devices, aborts with it later, or runs its attention on the CPU.
    P(llamafleet.turboquant.memory_budget#filter) knows, and its words are given.
  - A pair that runs, but of which wrong answers were reported, is left too, unless O(ladder) or a fixed cache type
    names it. Today that is turbo3 on Vulkan with the default build (TheTom/llama-cpp-turboquant#88, C(#137)).
  - Layers are moved to the CPU only when O(adjust) allows it, and then as few as let some pair of the ladder reach
    O(max_ctx).
  - Nothing fits is an error that says by how many bytes, and what would make it fit.
positional: devices, options, build
options:
  _input:
    description: The C(model) that the module M(llamafleet.turboquant.gguf_info) returns.
    type: dict
    required: true
  devices:
    description:
      - The GPUs, each with C(name), C(backend) (C(cuda), C(rocm) or C(vulkan)), C(total_bytes) and C(free_bytes).
      - Empty means the CPU alone; then give O(ram_bytes).
    type: list
    elements: dict
    default: []
  options:
    description:
      - What is fixed, as C(llama-server)'s long option names with underscores, like those of
        P(llamafleet.turboquant.memory_budget#filter). Absent, none and V(auto) leave an option to the choice.
      - A fixed C(cache_type_k) or C(cache_type_v) restricts the ladder; both together replace it. A fixed C(ctx_size)
        leaves only the pair to choose.
    type: dict
    default: {}
  build:
    description: The llama.cpp build whose rules hold.
    type: str
    default: turboquant-69d8e4be
  env:
    description: Environment of the server, for variables that change its memory such as C(TURBO_AUTO_ASYMMETRIC).
    type: dict
  ladder:
    description: Pairs of cache types in order of preference, each such as V(q8_0/turbo4) or a list of two names.
    type: list
    elements: raw
  min_ctx:
    description:
      - The smallest context worth having, in tokens over all slots, rounded up to a multiple of 256.
      - A model trained for less has its own limit instead.
    type: int
    default: 8192
  max_ctx:
    description:
      - The wanted context, in tokens over all slots, rounded down to a multiple of 256.
      - Absent means what the model was trained for.
    type: int
  headroom_bytes:
    description:
      - What each device keeps free, in bytes; or a dictionary with one number for each of some devices, and the default
        for the others. The host is named C(host).
      - The default is what C(llama-server --fit) keeps, 1 GiB.
    type: raw
    default: 1073741824
  ram_bytes:
    description:
      - The memory that the host may use, in bytes. Absent means that it does not limit the choice.
      - On a machine whose GPU maps system memory, give what remains beside the part of the GPU.
    type: int
  adjust:
    description: What may be moved to the CPU where the wanted context does not fit otherwise.
    type: list
    elements: str
    choices: [n_cpu_moe, n_gpu_layers]
    default: []
  fa_all_quants:
    description: Whether the build has the kernels of GGML_CUDA_FA_ALL_QUANTS, with which CUDA and ROCm run more pairs.
    type: bool
notes:
  - "Perplexities: TheTom/turboquant_plus, measured on an M5 Max against q8_0 (6.111)."
seealso:
  - plugin: llamafleet.turboquant.memory_budget
    plugin_type: filter
  - module: llamafleet.turboquant.gguf_info
"""

EXAMPLES = r"""
# Gemma 4 26B-A4B with the weights of UD-Q4_K_XL on a card of 24 GB.
- name: Choose for an RTX 4090
  ansible.builtin.set_fact:
    choice: "{{ header.model | llamafleet.turboquant.fit_context(devices=gpus, options={'parallel': 1}) }}"
  vars:
    gpus:
      - {name: CUDA0, backend: cuda, total_bytes: 25757220864, free_bytes: 25393364992}
# choice.options: {parallel: 1, ctx_size: 262144, cache_type_k: ..., cache_type_v: ..., fit: false}

- name: Let experts move to the CPU of a host with a card of 12 GB
  ansible.builtin.debug:
    msg: "{{ header.model | llamafleet.turboquant.fit_context(gpus, adjust=['n_cpu_moe'], ram_bytes=64 * 1024 ** 3) }}"
  vars:
    gpus:
      - {name: CUDA0, backend: cuda, total_bytes: 12884901888, free_bytes: 12884901888}

- name: Keep the caches lossless and see how far that reaches
  ansible.builtin.debug:
    msg: "{{ header.model | llamafleet.turboquant.fit_context(gpus, ladder=['f16/f16', 'q8_0/q8_0'], min_ctx=4096) }}"
"""

RETURN = r"""
_value:
  description: The choice.
  type: dict
  contains:
    options:
      description:
        - The fixed options with C(ctx_size), C(cache_type_k), C(cache_type_v), where they were to be adjusted
          C(n_cpu_moe) and C(n_gpu_layers), and C(fit) false, so that the program does not choose again at its start.
      type: dict
    budget:
      description: What P(llamafleet.turboquant.memory_budget#filter) returns for these options.
      type: dict
    considered:
      description:
        - Each pair of the ladder in its order, with C(cache_type_k), C(cache_type_v), C(loss_percent), the C(source) of
          that figure, C(ctx_size) (the largest that fits, none where it was not asked or nothing fits), C(chosen), and
          C(reason), why it was chosen or left.
      type: list
      elements: dict
    headroom:
      description: For each device its C(limit), and the bytes C(used), C(left) and C(wanted) to be left.
      type: dict
    warnings:
      description: What a person should know, those of the budget included.
      type: list
      elements: str
    calls:
      description: How many budgets were computed.
      type: int
"""

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _builds, _fit


def fit_context(
    model: Any, devices: Any = (), options: Any = None, build: str = _builds.DEFAULT_BUILD, **wishes: Any
) -> dict[str, Any]:
    """Return the options of the largest context that fits, or fail with what would make it fit."""
    try:
        return _fit.fit_context(model, devices, options, str(build), **wishes)
    except (ValueError, TypeError) as exc:
        # TypeError: a keyword that does not exist, which Python words well enough.
        raise AnsibleFilterError(f"fit_context: {exc}") from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"fit_context": fit_context}
