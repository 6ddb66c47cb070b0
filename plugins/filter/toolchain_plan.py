# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter toolchain_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: toolchain_plan
short_description: Which compilers, repositories and packages build llama.cpp on a Fedora host
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - Takes a Fedora release, or the versions found on a host, and returns what builds llama.cpp there for one backend.
    Repositories with the fingerprints of their keys, packages, the host compiler, environment, CMake options and
    warnings; or a refusal that says what would work.
  - It knows the highest GCC that each CUDA release accepts, the two conflicts between CUDA's headers and the C
    library's that no other compiler cures, the older compilers that each Fedora packages, what NVIDIA's repository for
    each Fedora carries, the driver that each CUDA needs, which CUDA builds for which GPU, and the ROCm of each Fedora.
  - Nothing is looked up on a host or on the network. The rows and their sources are in C(docs/toolchain_matrix.md).
  - C(-allow-unsupported-compiler) is never part of a plan.
positional: backend
options:
  _input:
    description:
      - The Fedora release as a number, or a dictionary with C(release) and, as found on the host, C(gcc), C(glibc),
        C(machine) (C(x86_64) or C(aarch64)) and C(compat), the list of majors of its gccNN-c++ packages.
      - C(installed), the lines that C(rpm --query --queryformat '%{NAME}\t%{VERSION}\t%{VENDOR}\n') prints, says
        the same as the host has it, whether RPM Fusion's driver is there, and whether ROCm of another vendor stands in
        the way. What is named stands above it.
      - A release that the table does not know needs C(gcc) and C(glibc).
    type: raw
    required: true
  backend:
    description:
      - What the build computes on, of V(cpu), V(vulkan), V(rocm) and V(cuda); or a list, for a builder of several kinds
        or a build with several backends.
    type: raw
    default: cpu
  method:
    description:
      - V(packages) takes the distribution's and the vendors' packages.
      - V(conda) takes an isolated toolchain of conda-forge, for hosts whose packages must not be touched.
    type: str
    choices: [packages, conda]
    default: packages
  machine:
    description: The machine's architecture; what the host says unless given.
    type: str
    choices: [x86_64, aarch64]
  cuda_version:
    description: A CUDA release such as V(13.1), or V(auto) for the newest that works there and is to be had.
    type: str
    default: auto
  rocm_version:
    description: A ROCm release, or V(auto).
    type: str
    default: auto
  rocm_source:
    description: Whose ROCm packages. AMD's are made for RHEL 10.
    type: str
    choices: [fedora, amd]
    default: fedora
  gpu_targets:
    description:
      - The GPUs that will run the build. Compute capabilities for cuda (V(8.9), V(89) and V(sm_89) are the same), gfx
        names for rocm.
      - Without them a CUDA build covers many GPUs, and a ROCm build must be given them later. The GPU of the builder is
        never taken.
      - With several backends, gfx names are of rocm and all others of cuda.
    type: list
    elements: str
    default: []
  driver_version:
    description: Version of the NVIDIA driver of the hosts that will run the build, to hold against the CUDA release.
    type: str
  header_patch:
    description:
      - Whether CUDA's own header may be patched where it contradicts the C library's.
      - Without, such a pair is refused.
    type: bool
    default: false
  nvidia_driver:
    description: Whether the NVIDIA driver is to be installed too.
    type: bool
    default: false
  rpmfusion_driver:
    description: Whether RPM Fusion's driver is on the host, which NVIDIA's repository must then not replace.
    type: bool
    default: false
  cuda_gcc_copr:
    description: Whether to add the COPR slaanesh/cuda-gcc, which sets the compiler for people who call nvcc by hand.
    type: bool
    default: true
  cuda_available:
    description:
      - The CUDA releases that the repository in use carries, where it is not NVIDIA's own.
      - Empty means not given.
    type: list
    elements: str
  cuda_repository:
    description:
      - What is different about the repository of CUDA, for a mirror or an archive of one's own. Keys are C(name),
        C(description), C(baseurl), C(key_url), C(key_fingerprint), C(exclude) and C(priority) (1 to 99, the lowest
        wins).
    type: dict
  rocm_repository:
    description: The same for AMD's repository of ROCm.
    type: dict
  copr_repository:
    description: The same for the COPR slaanesh/cuda-gcc.
    type: dict
  rocwmma:
    description:
      - Whether the builds for rocm are to use rocWMMA, whose headers are then among the packages. Refused for the GPUs
        on which it is wrong.
    type: bool
    default: false
  rocwmma_targets:
    description:
      - The gfx names that are built for with rocWMMA, where others of O(gpu_targets) are built for without it. Only
        these are looked at then, and O(rocwmma) need not be set.
      - Empty means all of O(gpu_targets) where O(rocwmma) is set.
    type: list
    elements: str
    default: []
  leftover_rocm:
    description: Whether the host has a directory C(/opt/rocm) that is not wanted.
    type: bool
    default: false
  conda_prefix:
    description: Where the conda toolchain lives.
    type: path
    default: /opt/llamafleet/toolchain/env
  conda_channel:
    description: The channel that the conda toolchain is of, a name or the address of a mirror.
    type: str
    default: conda-forge
seealso:
  - name: Toolchains
    description: How the choice is made, and what to do where it refuses.
    link: https://github.com/llamafleet/turboquant/blob/main/docs/toolchains.md
"""

EXAMPLES = r"""
- name: Show what builds for an RTX 4090 and an RTX 5090 on Fedora 44
  ansible.builtin.debug:
    msg: "{{ 44 | llamafleet.turboquant.toolchain_plan('cuda', gpu_targets=['8.9', '12.0']) }}"
# version: '13.4', host_compiler: /usr/bin/g++-15, architectures: ['89', '120'], driver_minimum: '580'

- name: Ask for a CUDA that no compiler of Fedora 44 builds
  ansible.builtin.debug:
    msg: "{{ 44 | llamafleet.turboquant.toolchain_plan('cuda', cuda_version='12.8', gpu_targets=['8.9']) }}"
# supported: false
# reason: CUDA 12.8 accepts GCC up to 14, and Fedora 44 has g++-15, g++-16
# would_work: [CUDA 13.3, 13.4 from NVIDIA's repository for this release, ...]

- name: Plan for Strix Halo with the distribution's ROCm
  ansible.builtin.debug:
    msg: "{{ 43 | llamafleet.turboquant.toolchain_plan('rocm', gpu_targets=['gfx1151']) }}"

- name: Plan for a host as it was found
  ansible.builtin.debug:
    msg: >-
      {{ {'release': 44, 'gcc': '16.2.1', 'glibc': '2.43', 'machine': 'x86_64'}
         | llamafleet.turboquant.toolchain_plan('vulkan') }}
"""

RETURN = r"""
_value:
  description: The plan.
  type: dict
  contains:
    supported:
      description: Whether the plan can be carried out.
      type: bool
    reason:
      description: Why it cannot; empty otherwise.
      type: str
    would_work:
      description: What would work instead, as sentences.
      type: list
      elements: str
    version:
      description:
        - The CUDA or ROCm release that was chosen; empty for other backends. Of several backends it is the one of the
          fastest, as are C(host_compiler) and C(driver_minimum).
      type: str
    architectures:
      description: What the GPUs' code is generated for.
      type: list
      elements: str
    backends:
      description:
        - What a build takes for each backend, C(cpu) among them. By name a dictionary with C(version),
          C(architectures), C(host_compiler), C(environment), C(cmake_options), C(run_path) and C(driver_minimum).
      type: dict
    repositories:
      description:
        - Package repositories, each with C(name), C(description), C(baseurl), C(key_url), C(key_fingerprint),
          C(exclude), C(priority), C(optional) (whether no build needs it) and C(variable), the role's variable that
          changes it.
      type: list
      elements: dict
    packages:
      description:
        - Package names in lists. C(base), C(backend) and C(driver) are for the builder, C(optional) for people who use
          the compilers by hand, and C(runtime) for a host that only runs what was built.
      type: dict
    host_compiler:
      description: The C++ compiler of the host code. For cuda the one that nvcc calls, for rocm the clang of ROCm.
      type: str
    environment:
      description: Environment of the build. Variables that would override the options are set to nothing.
      type: dict
    cmake_options:
      description: CMake options by name.
      type: dict
    run_path:
      description: Folders where a build must look for libraries, because the loader does not look there by itself.
      type: list
      elements: str
    header_patch:
      description: Whether CUDA's header needs a patch (C(needed)), of which C(functions), in which C(files).
      type: dict
    driver_minimum:
      description: The first driver branch that runs the build; empty for other backends.
      type: str
    conda:
      description:
        - For the method conda its C(prefix), C(channel), C(platform), C(specs), C(micromamba) (the program's C(url) and
          C(sha256)), C(lock_name) (what the file of its lock is called), and C(solve_arguments) and
          C(solve_environment), with which that program names the packages of a lock
          (P(llamafleet.turboquant.conda_lock#filter)).
      type: dict
    warnings:
      description: What a person should know, as sentences.
      type: list
      elements: str
    sources:
      description: Where the facts behind the plan come from.
      type: list
      elements: str
"""

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _toolchain


def toolchain_plan(host: Any, backend: Any = "cpu", **options: Any) -> dict[str, Any]:
    """Return how a host builds for a backend, or why it does not."""
    try:
        return _toolchain.toolchain_plan(host, backend, **options)
    except (ValueError, TypeError) as exc:
        # TypeError: an option that does not exist, which Python words well enough.
        raise AnsibleFilterError(f"toolchain_plan: {exc}") from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"toolchain_plan": toolchain_plan}
