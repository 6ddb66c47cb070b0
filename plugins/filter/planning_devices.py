# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: planning_devices
short_description: Turn what gpu_info found into the devices of the memory planner
version_added: 1.0.0
author:
  - llamafleet contributors (@llamafleet)
description:
  - Takes the result of the module M(llamafleet.turboquant.gpu_info) and returns the devices that llama-server would
    place a model on, with their names in llama.cpp and the memory that the chosen backend sees on each.
  - The list is what P(llamafleet.turboquant.memory_budget#filter) takes as its devices. It is empty where the host has
    no GPU, or where the build has the CPU backend only.
  - On a discrete GPU the memory is that of the card.
  - On an AMD APU with ROCm it is the GTT limit where that is larger than the firmware's carve-out (kernel 6.10 and
    newer take the memory from there), else the carve-out alone. With Vulkan it is both together, for RADV offers both
    as heaps. Where C(amdgpu.gttsize) promises more than C(ttm.pages_limit) gives, the smaller is free.
  - On an NVIDIA part that shares the RAM (GB10) it is the RAM.
  - RAM that a GPU maps is pinned, and no process is charged for it. So where a GPU shares the RAM, no more is free than
    C(MemAvailable) says and than the RAM less a reserve.
  - An integrated GPU under Vulkan is left out where any other GPU is there, as llama.cpp does.
  - CUDA devices are numbered by PCI address. CUDA itself puts the fastest card first, so set
    C(CUDA_DEVICE_ORDER=PCI_BUS_ID) for an instance on a host with cards of different kinds.
positional: _input, backend
options:
  _input:
    description: Result of M(llamafleet.turboquant.gpu_info).
    type: dict
    required: true
  backend:
    description:
      - Backend of the build, or a list of its backends, out of V(cpu), V(cuda), V(rocm) and V(vulkan).
      - A GPU that several of them can use counts once, for the first in the order cuda, rocm, vulkan.
      - V(auto) takes for each GPU the fastest backend that it has.
      - A backend that no GPU of the host has is an error.
    type: raw
    default: auto
  reserve_bytes:
    description:
      - RAM that is left to the system where a GPU shares it.
      - The default is 8 GiB, or 10 % of the RAM where that is more, as in P(llamafleet.turboquant.gtt_budget#filter).
    type: int
"""

EXAMPLES = r"""
# A Strix Halo with 128 GB, a carve-out of 2 GiB and a GTT limit of 112 GiB:
#   [{name: ROCm0, backend: rocm, total_bytes: 120259084288, free_bytes: 117133937049}]
- name: Show where a model would go
  ansible.builtin.debug:
    msg: "{{ gpu_info | llamafleet.turboquant.planning_devices(backend='rocm') }}"

- name: Predict the memory of a model on this host
  ansible.builtin.debug:
    msg: >-
      {{ gguf.model | llamafleet.turboquant.memory_budget(
           devices=gpu_info | llamafleet.turboquant.planning_devices(backend=llama_build_backends),
           options={'ctx_size': 32768}) }}
"""

RETURN = r"""
_value:
  description: The devices, in the order in which llama.cpp lists them.
  type: list
  elements: dict
  contains:
    name:
      description: The device's name in llama.cpp, such as V(CUDA0), V(ROCm0) or V(Vulkan0).
      type: str
    backend:
      description: V(cuda), V(rocm) or V(vulkan).
      type: str
    total_bytes:
      description: Memory that the backend sees.
      type: int
    free_bytes:
      description: Memory that a model may take now.
      type: int
"""

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _hardware


def planning_devices(gpu_info: Any, backend: Any = "auto", reserve_bytes: Any = None) -> list[dict[str, Any]]:
    """Check the types and hand over to the pure function."""
    if not isinstance(gpu_info, Mapping):
        raise AnsibleFilterError(
            f"planning_devices needs the result of gpu_info, a dictionary, and got {type(gpu_info).__name__}"
        )
    if reserve_bytes is not None and (isinstance(reserve_bytes, bool) or not isinstance(reserve_bytes, int)):
        raise AnsibleFilterError(f"planning_devices: reserve_bytes must be a whole number, got {reserve_bytes!r}")
    if isinstance(backend, str):
        backends = None if backend == "auto" else [backend]
    elif isinstance(backend, (list, tuple)) and all(isinstance(name, str) for name in backend):
        backends = list(backend)
    else:
        raise AnsibleFilterError(f"planning_devices: backend must be a name or a list of names, got {backend!r}")
    try:
        devices: list[dict[str, Any]] = _hardware.planning_devices(gpu_info, backends, reserve_bytes)
    except (KeyError, ValueError) as exc:
        raise AnsibleFilterError(f"planning_devices: {exc}") from exc
    return devices


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"planning_devices": planning_devices}
