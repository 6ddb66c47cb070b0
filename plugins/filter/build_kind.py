# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter build_kind: which hosts share a build."""

from __future__ import annotations

DOCUMENTATION = r"""
name: build_kind
short_description: Name the kind of build that a host needs
version_added: 1.0.0
author:
  - llamafleet contributors (@llamafleet)
description:
  - Hosts of one kind share one build. The kind follows from everything the inventory says of the build, from the
    architecture and the GPUs of the host, from the method of its toolchain, and from its distribution and release, or
    from its builder where it has one.
  - The fingerprint of the build itself also takes in the compilers, which only the builder knows.
positional: _input
options:
  _input:
    description:
      - The settings of the role C(llama_build) by name without the prefix, namely C(source), C(backends), C(targets),
        C(cpu_features), C(arm_arch), C(cuda_architectures), C(gpu_targets), C(cache_type_pairs), C(rocwmma), C(tls),
        C(cmake_options) and C(allow_known_bad).
    type: dict
    required: true
  host:
    description:
      - The host, with C(architecture), C(distribution), C(release), C(builder), C(method) (its C(toolchain_method)) and
        C(gpus).
      - C(instances) and C(instance_defaults) are C(llama_server_instances) and C(llama_server_defaults), whose pairs of
        cache types count where the build is for CUDA or ROCm.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Name the kind
  ansible.builtin.set_fact:
    kind: "{{ settings | llamafleet.turboquant.build_kind(host={
      'architecture': 'x86_64', 'distribution': 'Fedora', 'release': '44', 'builder': '', 'method': 'packages',
      'gpus': gpu.gpus}) }}"
"""

RETURN = r"""
_value:
  description:
    - C(kind), a name of 12 digits, with C(backends), C(cuda_architectures) and C(gpu_targets) as they will be built.
    - C(cache_type_pairs), the pairs whose attention kernels are not in every build.
    - C(rocwmma), whether the build is for ROCm and uses rocWMMA.
    - C(nvidia_drivers), the versions of the NVIDIA drivers that were found. They are not of the kind.
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ..module_utils._build_kind import build_kind


def plain(value: Any) -> Any:
    """Copy what may be a lazy container of templates into plain ones, which json can read."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def filter_build_kind(settings: Any, host: Any) -> dict[str, Any]:
    """Check the types, and name the kind."""
    for name, value in (("settings", settings), ("host", host)):
        if not isinstance(value, Mapping):
            raise AnsibleFilterError(f"build_kind needs {name} as a mapping, got {type(value).__name__}: {value!r}")
    try:
        return build_kind(plain(settings), plain(host))
    except (KeyError, ValueError) as exc:
        raise AnsibleFilterError(f"build_kind: {exc}") from exc


class FilterModule:
    """What this file offers to templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"build_kind": filter_build_kind}
