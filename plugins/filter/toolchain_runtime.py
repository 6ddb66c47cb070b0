# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter toolchain_runtime."""

from __future__ import annotations

DOCUMENTATION = r"""
name: toolchain_runtime
short_description: Which packages a Fedora host needs to run what another host has built
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - Takes a Fedora release, or a host as it was found, and what a toolchain says of the backends of a build
    (P(llamafleet.turboquant.toolchain_plan#filter)). Returns the packages with the libraries of those backends and the
    repositories that carry them, or a refusal that says what would work.
  - The build decides which libraries. The release of the host decides which packages carry them, so a host may take
    those of a newer minor version than the builder's.
positional: built
options:
  _input:
    description: The Fedora release as a number, or a dictionary as the filter toolchain_plan takes it.
    type: raw
    required: true
  built:
    description: C(backends) of the builder's plan, of the backends that the build has.
    type: dict
    required: true
  machine:
    description: The machine's architecture; what the host says unless given.
    type: str
    choices: [x86_64, aarch64]
  rpmfusion_driver:
    description: Whether RPM Fusion's driver is on the host, which NVIDIA's repository must then not replace.
    type: bool
    default: false
  cuda_available:
    description: The CUDA releases that the repository in use carries, where it is not NVIDIA's own.
    type: list
    elements: str
  cuda_repository:
    description: What is different about the repository of CUDA, as in the filter toolchain_plan.
    type: dict
  rocm_repository:
    description: The same for AMD's repository of ROCm.
    type: dict
"""

EXAMPLES = r"""
- name: Show what a host needs for a Vulkan build
  ansible.builtin.debug:
    msg: "{{ 44 | llamafleet.turboquant.toolchain_runtime({'vulkan': {}}) }}"
# packages: [vulkan-loader, mesa-vulkan-drivers]

- name: Show what a host needs for what its builder has made
  ansible.builtin.debug:
    msg: "{{ 44 | llamafleet.turboquant.toolchain_runtime(hostvars['builder'].toolchain_result.backends) }}"
"""

RETURN = r"""
_value:
  description: The plan.
  type: dict
  contains:
    supported:
      description: Whether the host can have the libraries.
      type: bool
    reason:
      description: Why it cannot; empty otherwise.
      type: str
    would_work:
      description: What would work instead, as sentences.
      type: list
      elements: str
    packages:
      description: Names of packages.
      type: list
      elements: str
    repositories:
      description: Package repositories, as the filter toolchain_plan returns them.
      type: list
      elements: dict
    versions:
      description: The CUDA and ROCm releases whose libraries they are, by backend.
      type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _toolchain_runtime


def toolchain_runtime(host: Any, built: Any, **options: Any) -> dict[str, Any]:
    """Return what a host needs to run a build, or why it cannot have it."""
    if not isinstance(built, Mapping):
        raise AnsibleFilterError(f"toolchain_runtime: built is a dictionary, got {type(built).__name__}: {built!r}")
    try:
        return _toolchain_runtime.runtime_plan(host, built, **options)
    except (ValueError, TypeError) as exc:
        # TypeError: an option that does not exist, which Python words well enough.
        raise AnsibleFilterError(f"toolchain_runtime: {exc}") from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"toolchain_runtime": toolchain_runtime}
