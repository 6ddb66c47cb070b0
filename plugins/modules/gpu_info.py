#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Report the GPUs of a host, their memory and what is known to hurt
version_added: 1.0.0
description:
  - Reads in one call which GPUs a host has, which driver has taken each, how much memory each has and which backends
    of llama.cpp can use it.
  - The kernel's own files are read first. C(nvidia-smi), C(vulkaninfo) and C(rpm) are asked only for what the kernel
    does not tell, side by side, and are left behind after O(timeout) seconds even where they hang in the kernel.
  - Software rasterisers such as llvmpipe, the display adapters of virtual machines (virtio, QXL) and those of
    management
    controllers are never reported as GPUs.
  - Needs no root, except where the host hides its device nodes from others. Changes nothing.
  - Never fails because of what it finds. What could not be read, and what is known to hurt, is in RV(problems).
options:
  root:
    description:
      - Folder to read in place of V(/), such as a tree of files captured on another machine.
      - With any other value than V(/) no program is run. The answers of programs are then read from the files
        C(nvidia-smi), C(vulkaninfo), C(rpm) and C(stat) in the folder C(.captured) below it.
    type: path
    default: /
  timeout:
    description: Seconds that all programs together may take, between 0.1 and 30.
    type: float
    default: 1.5
  cuda_version:
    description:
      - Release of CUDA that the host's programs are built with, such as V(13.2).
      - Where it is given, a driver or a GPU that cannot run such programs is one of the RV(problems), with severity
        V(error).
    type: str
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
author:
  - llamafleet contributors (@llamafleet)
seealso:
  - plugin: llamafleet.turboquant.planning_devices
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Read what GPUs the host has
  llamafleet.turboquant.gpu_info:
    cuda_version: "13.2"
  register: gpu_info

- name: Show what is known to hurt
  ansible.builtin.debug:
    msg: "{{ gpu_info.problems | map(attribute='message') }}"

- name: Read a tree that was captured on another machine
  llamafleet.turboquant.gpu_info:
    root: /srv/captures/strix-halo
"""

RETURN = r"""
gpus:
  description: The GPUs, by PCI address.
  returned: always
  type: list
  elements: dict
  sample:
    - name: AMD Radeon 8060S Graphics
      vendor: amd
      pci_address: "0000:c6:00.0"
      pci_id: "1002:1586"
      driver: amdgpu
      driver_version: null
      vram_total_bytes: 2147483648
      vram_used_bytes: 161820672
      gtt_total_bytes: 120259084288
      gtt_used_bytes: 25169920
      integrated: true
      compute_capability: null
      gfx_target: gfx1151
      cuda_driver_max: null
      device_nodes:
        - {path: /dev/kfd, mode: "0666", gid: 105, group: render}
      backends: [rocm, vulkan]
  contains:
    name:
      description: Name of the product; vendor and PCI id where no list of the host knows it.
      type: str
    vendor:
      description: V(nvidia), V(amd) or V(intel).
      type: str
    pci_address:
      description: Address on the PCI bus, as the kernel writes it.
      type: str
    pci_id:
      description: Vendor and device number, hexadecimal.
      type: str
    driver:
      description: Kernel driver that has taken the GPU, or null.
      type: str
    driver_version:
      description: Version of the driver; null for drivers of the kernel's own tree, whose version is the kernel's.
      type: str
    vram_total_bytes:
      description:
        - Memory of the GPU.
        - On an AMD APU, what the firmware keeps for it (the carve-out).
        - On an NVIDIA part that shares the RAM (GB10), the RAM.
      type: int
    vram_used_bytes:
      description: The part of it that is not free, with what the driver keeps for itself.
      type: int
    gtt_total_bytes:
      description: RAM that the driver amdgpu may map for the GPU; null with other drivers.
      type: int
    gtt_used_bytes:
      description: The part of it in use.
      type: int
    integrated:
      description: Whether the GPU has no memory of its own.
      type: bool
    compute_capability:
      description: CUDA compute capability, such as V(8.9); null without nvidia-smi.
      type: str
    gfx_target:
      description: AMD's compiler target, such as V(gfx1151), from KFD.
      type: str
    cuda_driver_max:
      description: Highest CUDA that the branch of the driver supports.
      type: str
    device_nodes:
      description: The GPU's device nodes that exist, with mode, group number and group name (null where it has none).
      type: list
      elements: dict
    backends:
      description: Backends of llama.cpp that can use the GPU, the fastest first (V(cuda), V(rocm), V(vulkan)).
      type: list
      elements: str
memory:
  description: The host's memory.
  returned: always
  type: dict
  contains:
    ram_total_bytes:
      description: C(MemTotal) of /proc/meminfo.
      type: int
    ram_available_bytes:
      description: C(MemAvailable) of /proc/meminfo.
      type: int
    gtt_limit_bytes:
      description: RAM that the GPU may map, as the driver has taken it; C(ttm.pages_limit) where no AMD GPU is there.
      type: int
    ttm_pages_limit:
      description: C(ttm.pages_limit), in pages.
      type: int
kernel:
  description: C(release) and C(cmdline) of the running kernel.
  returned: always
  type: dict
firmware:
  description: Version of the package linux-firmware, or null.
  returned: always
  type: str
  sample: "20260110"
problems:
  description: What could not be read, and what is known to hurt.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Name of the kind of problem.
      type: str
    severity:
      description: V(error) where llama-server cannot work, else V(warning).
      type: str
    message:
      description: The problem in words, with its figures and what would be right.
      type: str
    source:
      description: The file or program that told it, or the document that the rule comes from.
      type: str
    gpu:
      description: PCI address of the GPU that it concerns, or null.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llamafleet.turboquant.plugins.module_utils._hardware import read_hardware


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "timeout": {"type": "float", "default": 1.5},
            "cuda_version": {"type": "str"},
        },
        supports_check_mode=True,
    )
    timeout = module.params["timeout"]
    if not 0.1 <= timeout <= 30:
        module.fail_json(msg=f"timeout is {timeout:g} s; it must be between 0.1 and 30")
    result = read_hardware(module.params["root"], timeout=timeout, cuda_version=module.params["cuda_version"] or None)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
