# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages a host needs to run what another host has built."""

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _toolchain, _toolchain_runtime


def built(release, backends, **options):
    return _toolchain.toolchain_plan(release, backends, **options)["backends"]


def plan(host, parts, **options):
    return _toolchain_runtime.runtime_plan(host, parts, **options)


@pytest.mark.parametrize("backend", _toolchain.BACKENDS)
def test_on_the_builders_release_they_are_those_that_its_plan_names(backend):
    whole = _toolchain.toolchain_plan(44, backend, gpu_targets=["8.9"] if backend == "cuda" else [])
    got = plan(44, whole["backends"])
    assert got["supported"], got["reason"]
    assert got["packages"] == whole["packages"]["runtime"]
    required = [repository for repository in whole["repositories"] if not repository["optional"]]
    assert got["repositories"] == required


@pytest.mark.parametrize(
    ("builder", "version", "host", "options", "packages"),
    [
        (44, "13.3", 44, {}, ["cuda-cudart-13-3", "libcublas-13-3"]),
        # NVIDIA's repository for the host has another minor version, and a newer one serves.
        (43, "13.2", 44, {}, ["cuda-cudart-13-3", "libcublas-13-3"]),
        (42, "13.0", 43, {}, ["cuda-cudart-13-2", "libcublas-13-2"]),
        (44, "13.4", 43, {"cuda_available": ["12.9", "13.2", "13.5"]}, ["cuda-cudart-13-5", "libcublas-13-5"]),
        (44, "13.4", 43, {"cuda_repository": {"baseurl": "file:///srv"}}, ["cuda-cudart-13-4", "libcublas-13-4"]),
    ],
)
def test_the_cuda_of_a_host_need_not_be_the_builders(builder, version, host, options, packages):
    parts = built(builder, "cuda", cuda_version=version, gpu_targets=["8.9"])
    got = plan(host, parts, **options)
    assert got["supported"], got["reason"]
    assert got["packages"] == packages
    (repository,) = got["repositories"]
    assert repository["name"] == f"cuda-fedora{host}-x86_64"


@pytest.mark.parametrize(
    ("host", "parts", "options", "reason"),
    [
        (43, built(44, "cuda", gpu_targets=["8.9"]), {}, "CUDA 13.4 or a newer 13.x.*Fedora 43 carries 13.2"),
        (45, built(44, "cuda", gpu_targets=["8.9"]), {}, "carries none that is known"),
        (44, {"cuda": {"version": "12.9"}}, {}, "a newer 12.x.*carries 13.3, 13.4"),
        (44, {"cuda": {"version": "13.3"}}, {"machine": "aarch64"}, "carries none that is known"),
        (44, built(43, "rocm"), {}, "ROCm 6.4.2, and Fedora 44 packages ROCm 7.1.1"),
        (44, built(45, "rocm"), {}, "ROCm 7.2.2, and Fedora 44 packages ROCm 7.1.1"),
        (46, built(45, "rocm"), {}, "Fedora 46 is not in the table"),
    ],
)
def test_libraries_that_do_not_serve_are_refused(host, parts, options, reason):
    got = plan(host, parts, **options)
    assert not got["supported"]
    assert got["would_work"]
    with pytest.raises(ValueError, match=reason):
        raise ValueError(got["reason"])


def test_a_newer_rocm_of_the_same_major_serves():
    assert plan(45, built(44, "rocm"))["versions"] == {"rocm": "7.2.2"}


def test_rocm_of_amd_is_the_builders_on_any_release():
    got = plan(43, built(44, "rocm", rocm_source="amd"))
    assert got["packages"] == ["hip-runtime-amd", "hipblas", "rocblas"]
    assert [repository["name"] for repository in got["repositories"]] == ["rocm-7.2.4"]


def test_rocm_of_another_vendor_is_refused_where_it_runs_too():
    host = {"release": 43, "installed": ["hipblas\t6.4.2\tFedora Project"]}
    got = plan(host, built(44, "rocm", rocm_source="amd"))
    assert not got["supported"]
    assert got["reason"].startswith("hipblas of Fedora Project is installed")
    assert got["would_work"] == ["removing that first (dnf remove hipblas)", "rocm_source: fedora for the builder"]


def test_vulkan_needs_no_table():
    assert plan(47, {"cpu": {}, "vulkan": {}})["packages"] == ["vulkan-loader", "mesa-vulkan-drivers"]
    assert plan(47, {"cpu": {}})["packages"] == []


def test_nothing_replaces_the_driver_of_rpm_fusion():
    host = {"release": 44, "installed": ["akmod-nvidia 580.95.05"]}
    (repository,) = plan(host, built(44, "cuda", gpu_targets=["8.9"]))["repositories"]
    assert repository["exclude"] == list(_toolchain.DRIVER_EXCLUDES)


def test_a_backend_that_does_not_exist():
    with pytest.raises(ValueError, match="got metal"):
        plan(44, {"metal": {}})
