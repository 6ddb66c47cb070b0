# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: kv_cache_bytes
short_description: Bytes of the K/V caches of llama-server
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - The bytes of all K/V caches and recurrent states of one configuration, as one number.
  - It is the sum of the C(size =) lines of the server's log. What each device allocates is larger by alignment and,
    with a turbo K, by its rotation tensors; P(llamafleet.turboquant.memory_budget#filter) has it by device.
  - Sliding windows, slots, shared layers, padded heads, MLA, auto-asymmetric K and layer-adaptive modes are taken into
    account. Whether the pair works on a device is not asked.
positional: options, build, env
options:
  _input:
    description: The C(model) that the module M(llamafleet.turboquant.gguf_info) returns.
    type: dict
    required: true
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
seealso:
  - plugin: llamafleet.turboquant.memory_budget
    plugin_type: filter
"""

EXAMPLES = r"""
# Gemma 4 26B-A4B, the whole context: 2264432640 bytes with q8_0/turbo4, 5683281920 with f16/f16.
- name: Say what the cache takes
  ansible.builtin.debug:
    msg: >-
      {{ gemma.model | llamafleet.turboquant.kv_cache_bytes(
           {'ctx_size': 262144, 'parallel': 1, 'cache_type_k': 'q8_0', 'cache_type_v': 'turbo4'}) }}
"""

RETURN = r"""
_value:
  description: The bytes.
  type: int
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _builds, _memory


def kv_cache_bytes(
    model: Mapping[str, Any],
    options: Any = None,
    build: str = _builds.DEFAULT_BUILD,
    env: Any = None,
    program: str | None = None,
) -> int:
    """See DOCUMENTATION."""
    try:
        return _memory.kv_cache_bytes(model, options, str(build), env, program)
    except ValueError as e:
        raise AnsibleFilterError(f"kv_cache_bytes: {e}") from e


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"kv_cache_bytes": kv_cache_bytes}
