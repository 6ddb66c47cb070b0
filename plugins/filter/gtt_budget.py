# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter gtt_budget."""

from __future__ import annotations

DOCUMENTATION = r"""
name: gtt_budget
short_description: How much memory an integrated GPU may map, and the kernel arguments for it
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - Takes the memory of a host in bytes and returns the size of the graphics translation table (GTT) that its
    integrated GPU (Strix Halo and its kin) may use, with the kernel arguments that set it.
  - The arguments always agree with each other. C(ttm.pages_limit) counts pages of 4 KiB, so it is 256 times the size
    in MiB; C(amdgpu.gttsize) counts MiB.
  - The pages of a GTT are pinned and belong to no process that the OOM killer sees. A GTT that leaves the host too
    little freezes it, so a size above the memory less the reserve is an error.
  - The kernel sizes the table when the driver loads, so a changed value needs a reboot.
positional: wanted_bytes, reserve_bytes
options:
  _input:
    description: The host's memory in bytes, C(MemTotal) of C(/proc/meminfo) times 1024.
    type: int
    required: true
  wanted_bytes:
    description:
      - The wanted size in bytes, rounded up to a whole MiB.
      - Absent or none takes all that the reserve leaves.
    type: int
  reserve_bytes:
    description:
      - What the host keeps for itself, in bytes.
      - Absent or none means the larger of 8 GiB and a tenth of the memory.
    type: int
  gttsize:
    description:
      - Whether to give C(amdgpu.gttsize) too, with the value that matches.
      - Only old kernels need it (one report names 6.8). Kernels from about 6.14 warn that it is deprecated.
    type: bool
    default: false
  page_pool:
    description:
      - Whether to give C(ttm.page_pool_size) too, with the same number of pages.
      - It is the size of the kernel's cache of freed pages. It reserves nothing, although many guides say so.
    type: bool
    default: false
  present:
    description:
      - Kernel arguments to judge, those of a running host or of a guide. Either a kernel command line, or a mapping of
        names to values.
      - What contradicts itself or has no effect comes back among the warnings.
    type: raw
notes:
  - "Sources: the amdgpu and TTM drivers of the Linux kernel (the text of the patch that deprecates C(amdgpu.gttsize),
    January 2025), and C(amd-ttm) of amd-debug-tools 0.2.22 for the rule that 90 percent is the most a GPU should get."
seealso:
  - plugin: llamafleet.turboquant.memory_budget
    plugin_type: filter
  - plugin: llamafleet.turboquant.fit_context
    plugin_type: filter
"""

EXAMPLES = r"""
# A Strix Halo machine of 128 GB that sees 125 GiB: 12.5 GiB stay with the host.
- name: Show what the GPU may map
  ansible.builtin.debug:
    msg: "{{ (125 * 1024 ** 3) | llamafleet.turboquant.gtt_budget }}"
# gtt_bytes: 120795955200, gttsize_mib: 115200, pages_limit: 29491200,
# kernel_args: {ttm.pages_limit: '29491200'}

- name: Map 48 GiB of a 64 GB machine
  ansible.builtin.debug:
    msg: "{{ (62 * 1024 ** 3) | llamafleet.turboquant.gtt_budget(wanted_bytes=48 * 1024 ** 3) }}"
# pages_limit: 12582912; the 12288000 of many guides is 46.875 GiB, and a warning says so

- name: Judge what a host has
  ansible.builtin.debug:
    msg: "{{ (ram_bytes | llamafleet.turboquant.gtt_budget(present=cmdline)).warnings }}"
  vars:
    ram_bytes: "{{ ansible_facts['memtotal_mb'] * 1024 ** 2 }}"
    cmdline: amdgpu.gttsize=49152 ttm.pages_limit=12288000
"""

RETURN = r"""
_value:
  description: The size and the kernel arguments that set it.
  type: dict
  contains:
    gtt_bytes:
      description: Size in bytes, a whole number of MiB.
      type: int
    gttsize_mib:
      description: The same in MiB, the unit of C(amdgpu.gttsize).
      type: int
    pages_limit:
      description: The same in pages of 4 KiB, the unit of C(ttm.pages_limit). Always 256 times RV(_value.gttsize_mib).
      type: int
    kernel_args:
      description: Kernel arguments by name, as the module M(llamafleet.turboquant.kernel_args) takes them.
      type: dict
    warnings:
      description: What a person should know, as sentences. Empty when all is well.
      type: list
      elements: str
"""

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _gtt


def gtt_budget(
    ram_bytes: Any,
    wanted_bytes: Any = None,
    reserve_bytes: Any = None,
    gttsize: bool = False,
    page_pool: bool = False,
    present: Any = None,
) -> dict[str, Any]:
    """Return the GTT's size and kernel arguments for a host with this much memory."""
    try:
        return _gtt.gtt_budget(
            ram_bytes,
            wanted_bytes=wanted_bytes,
            reserve_bytes=reserve_bytes,
            gttsize=gttsize,
            page_pool=page_pool,
            present=present,
        )
    except ValueError as exc:
        raise AnsibleFilterError(f"gtt_budget: {exc}") from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gtt_budget": gtt_budget}
