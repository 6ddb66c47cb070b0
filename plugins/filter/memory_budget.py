# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: memory_budget
short_description: Predict the memory of llama-server to the byte, and whether it starts
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - Takes the header of a model and says what C(llama-server) would allocate with it on each device, before the model is
    downloaded and without a GPU. It reproduces the figures of the program's own log.
  - Weights, K/V caches and recurrent states follow the loader's and the caches' rules. The compute buffer is what
    llama.cpp's scheduler and graph allocator give for the graph of one micro-batch; both are modelled, with their
    architectures. Of the 1,081 measured rows in C(tests/data/oracle) every one of these sizes is equal on CPU and CUDA.
    C(docs/memory_model.md) says how each byte is counted.
  - It also says whether the program gets through its start-up (RV(_value.starts)), whether anything known goes wrong
    later (RV(_value.accepted)), why, and the nearest choice that works. Cache types without a kernel, head sizes, flash
    attention off with a quantized V and a graph with too many inputs are refusals; a pair that starts and aborts at the
    first generated token, attention that silently runs on the CPU, and memory that does not suffice are not accepted.
  - Where a silent policy changes the types (auto-asymmetric K, layer-adaptive modes, turbo2), or four slots multiply
    the cache of a sliding window, RV(_value.warnings) say so.
positional: devices, options, build, env
options:
  _input:
    description: The C(model) that the module M(llamafleet.turboquant.gguf_info) returns.
    type: dict
    required: true
  devices:
    description:
      - The GPUs in the program's order, each with C(name) (by default C(CUDA0), C(ROCm0), C(Vulkan0) and so on),
        C(backend) (V(cuda), V(rocm) or V(vulkan)), C(total_bytes) and C(free_bytes). Layers are shared out by
        C(free_bytes) where V(tensor_split) does not say how.
      - A Vulkan device may have C(max_storage_buffer_range), the bytes of the largest tensor that it binds. Without it,
        128 MiB count for a C(name) with C(llvmpipe) in it and 4 GiB for any other, with a warning where that decides.
      - Empty means the CPU alone.
    type: list
    elements: dict
    default: []
  options:
    description:
      - C(llama-server)'s long option names with underscores and without C(no-); absent means that build's default.
        An unknown name and a wrong value are errors.
      - V(ctx_size) (tokens over all slots, 0 is what the model was trained for), V(parallel) (slots, -1 is four that
        share one cache), V(kv_unified), V(cache_type_k), V(cache_type_v), V(flash_attn) (on, off, auto), V(swa_full),
        V(batch_size), V(ubatch_size).
      - V(n_gpu_layers) (-1, V(auto) and V(all) are all layers), V(n_cpu_moe), V(cpu_moe), V(override_tensor)
        (V(REGEX=BUFFER), or a list of such), V(tensor_split), V(split_mode), V(main_gpu), V(kv_offload), V(mmap),
        V(op_offload), V(repack), V(no_host), V(fit), V(fit_target), V(fit_ctx), V(embeddings).
      - V(mmproj_bytes) is the size of a multimodal projector's file and V(mmproj_offload) whether a GPU holds it;
        V(cache_ram) is in MiB, V(ctx_checkpoints) a number for each slot.
      - V(program) is V(llama-server), the default, or V(llama-fit-params), whose defaults differ (one slot, no mapping
        of the file) and which allocates nothing.
      - V(fa_all_quants) says that a CUDA or HIP build was made with C(GGML_CUDA_FA_ALL_QUANTS).
    type: dict
    default: {}
  build:
    description:
      - The llama.cpp build whose constants and rules hold. V(turboquant-69d8e4be) is TheTom/llama-cpp-turboquant at
        commit 69d8e4be, V(upstream-b11434) is ggml-org/llama.cpp b11434, without the turbo types.
      - Sizes belong to a commit; the turbo types have had several. An unknown name is an error that lists the known.
    type: str
    default: turboquant-69d8e4be
  env:
    description:
      - The environment of the server. C(TURBO_AUTO_ASYMMETRIC), C(TURBO_LAYER_ADAPTIVE) and C(LLAMA_ATTN_ROT_*) change
        what it allocates.
    type: dict
    default: {}
  program:
    description: The same as V(program) in O(options).
    type: str
    choices: [llama-server, llama-fit-params]
  fa_all_quants:
    description: The same as V(fa_all_quants) in O(options).
    type: bool
notes:
  - All sizes are bytes. C(host) sums every buffer in RAM, pinned or not; a mapped file counts from the first to the
    last tensor that is not on a GPU, as in the log.
  - The first budget of a model takes some 30 ms, because its graph is laid out; further ones 0.1 ms where no decision
    of the allocator changes.
  - What no log line shows is in C(other) and itemised in RV(_value.notes). It counts for C(llama-server) only, and some
    of it is an upper bound (prompt cache, checkpoints).
  - On Vulkan the compute buffer and the placement of very large tensors were not measured on a GPU.
  - The graphs are those of the fork. For V(upstream-b11434) the caches and weights follow that build, the compute
    buffer is the fork's graph with that build's masks and outputs, without measured rows.
seealso:
  - plugin: llamafleet.turboquant.fit_context
    plugin_type: filter
  - plugin: llamafleet.turboquant.kv_cache_bytes
    plugin_type: filter
  - module: llamafleet.turboquant.gguf_info
"""

EXAMPLES = r"""
# Gemma 4 26B-A4B (17.4 GB of weights) with its whole context of 262144 tokens on a card of 24 GiB.
# KV takes 2160 MiB: the five full-attention layers hold 262144 cells, the other 25 only 1536.
- name: Read the header of the model, not the model
  llamafleet.turboquant.gguf_info:
    path: /srv/models/gemma-4-26B-A4B-it-Q4_K_M.gguf
  register: gemma

- name: Predict its memory
  ansible.builtin.debug:
    msg: >-
      starts {{ budget.starts }}, {{ (budget.devices.CUDA0.total / 1024**2) | round | int }} MiB on the card:
      weights {{ budget.devices.CUDA0.weights }}, KV {{ budget.devices.CUDA0.kv }},
      compute {{ budget.devices.CUDA0.compute }}, other {{ budget.devices.CUDA0.other }}
  vars:
    budget: >-
      {{ gemma.model | llamafleet.turboquant.memory_budget(
           devices=[{'name': 'CUDA0', 'backend': 'cuda', 'total_bytes': 25769803776, 'free_bytes': 25232932864}],
           options={'ctx_size': 262144, 'parallel': 1, 'cache_type_k': 'q8_0', 'cache_type_v': 'turbo4',
                    'flash_attn': 'on'}) }}
# starts True, 20408 MiB on the card: weights 16774317056, KV 2264432640, compute 865226752, other 1495269376

# The same on a Vulkan device: V of type turbo4 needs flash attention, which Vulkan has for equal types only.
# starts is false, and reason ends with 'The nearest pair that runs is q4_0/q4_0'.
- name: Stop before a server that would not start
  ansible.builtin.assert:
    that: budget.accepted
    fail_msg: "{{ budget.reason }}"
  vars:
    budget: >-
      {{ gemma.model | llamafleet.turboquant.memory_budget(
           devices=[{'name': 'Vulkan0', 'backend': 'vulkan', 'total_bytes': 25769803776}],
           options={'cache_type_k': 'q8_0', 'cache_type_v': 'turbo4'}) }}
"""

RETURN = r"""
_value:
  description: The budget; all sizes in bytes.
  type: dict
  contains:
    starts:
      description: Whether the program gets through its start-up.
      type: bool
    accepted:
      description: Whether it starts and nothing known goes wrong later.
      type: bool
    reason:
      description: Why not, and the nearest choice that works; empty when accepted.
      type: str
    warnings:
      description: What a person must know although it is accepted.
      type: list
      elements: str
    context:
      description: What the program makes of the options.
      type: dict
      contains:
        n_ctx: {description: "Cells over all slots, a multiple of 256.", type: int}
        n_ctx_seq: {description: Cells that one slot can use., type: int}
        n_parallel: {description: Slots., type: int}
        n_ubatch: {description: Tokens of a micro-batch., type: int}
        kv_unified: {description: Whether the slots share one cache., type: bool}
    caches:
      description: The caches, each with the types that the log prints.
      type: list
      elements: dict
      contains:
        kind: {description: "C(base), C(swa) (sliding window) or C(recurrent).", type: str}
        cells: {description: "Cells of each stream, or states.", type: int}
        layers: {description: The numbers of its layers., type: list, elements: int}
        type_k: {description: Type of K., type: str}
        type_v: {description: Type of V., type: str}
        k_bytes: {description: "K over all streams, or the R state.", type: int}
        v_bytes: {description: "V over all streams, or the S state.", type: int}
    devices:
      description: By device, and C(host) for the RAM.
      type: dict
      contains:
        weights: {description: Tensors of the model., type: int}
        kv: {description: K and V., type: int}
        recurrent: {description: Recurrent states., type: int}
        compute: {description: The compute buffer., type: int}
        output: {description: The buffer of logits., type: int}
        other: {description: What no log line shows., type: int}
        total: {description: The sum., type: int}
    total:
      description: The sum over all devices and the host.
      type: int
    notes:
      description: What C(other) holds, each with C(what), C(device), C(bytes), C(counted) and C(source).
      type: list
      elements: dict
    build:
      description: Name and source of the build whose rules were used.
      type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _builds, _memory


def memory_budget(
    model: Mapping[str, Any],
    devices: Any = (),
    options: Any = None,
    build: str = _builds.DEFAULT_BUILD,
    env: Any = None,
    program: str | None = None,
    fa_all_quants: bool | None = None,
) -> dict[str, Any]:
    """See DOCUMENTATION."""
    try:
        return _memory.memory_budget(model, devices, options, str(build), env, program, fa_all_quants)
    except ValueError as e:
        raise AnsibleFilterError(f"memory_budget: {e}") from e


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"memory_budget": memory_budget}
