# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which toolchain builds where: the tables, and what the plans make of them."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _toolchain
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[4]
SINPI = ["sinpi", "sinpif", "cospi", "cospif"]
RSQRT = ["rsqrt", "rsqrtf"]

# Written by hand from the compilers' and the repositories' own data, not from the tables under test: for each
# Fedora release and CUDA, the compiler and what else stands in the way.
#   ok       in NVIDIA's repository of that release
#   other    it builds, but that repository does not have it
#   4, 6, 2  the header must be patched: of four, six or two functions
#   no       no packaged compiler is old enough
EXPECTED = {
    "12.4": ("no", "no", "no", "no"),
    "12.5": ("no", "no", "no", "no"),
    "12.6": ("no", "no", "no", "no"),
    "12.8": ("4 g++-14", "6 g++-14", "no", "no"),
    "12.9": ("4 g++-14", "6 g++-14", "no", "no"),
    "13.0": ("ok g++-14", "2 g++-14", "2 g++-15", "2 g++-15"),
    "13.1": ("ok g++-14", "2 g++-14", "2 g++-15", "2 g++-15"),
    "13.2": ("other g++-14", "ok g++-14", "other g++-15", "other g++-15"),
    "13.3": ("other g++-14", "other g++-14", "ok g++-15", "other g++-15"),
    "13.4": ("other g++-14", "other g++-14", "ok g++-15", "other g++-15"),
    "13.5": ("other g++-14", "other g++-14", "other g++-15", "other g++-15"),
}
FEDORAS = (42, 43, 44, 45)
PAIRS = [(fedora, cuda, expected) for cuda, row in EXPECTED.items() for fedora, expected in zip(FEDORAS, row)]
FUNCTIONS = {"4": SINPI, "6": SINPI + RSQRT, "2": RSQRT}


def plan(host, backend="cuda", **options):
    return _toolchain.toolchain_plan(host, backend, **options)


def test_the_table_under_test_has_no_other_rows():
    assert tuple(_toolchain.CUDAS) == tuple(EXPECTED)
    assert tuple(_toolchain.RELEASES) == FEDORAS


@pytest.mark.parametrize(("fedora", "cuda", "expected"), PAIRS)
def test_each_fedora_with_each_cuda(fedora, cuda, expected):
    kind, _space, compiler = expected.partition(" ")
    got = plan(fedora, cuda_version=cuda, gpu_targets=["8.9"])
    assert got["supported"] is (kind == "ok"), got["reason"]
    if kind == "no":
        assert f"CUDA {cuda} accepts GCC up to" in got["reason"]
        assert any("conda" in text for text in got["would_work"])
        patched = plan(fedora, cuda_version=cuda, gpu_targets=["8.9"], header_patch=True)
        assert not patched["supported"], "a patch of the header must not hide the missing compiler"
        return
    if kind in FUNCTIONS:
        assert ", ".join(FUNCTIONS[kind]) in got["reason"]
        assert got["header_patch"]["functions"] == FUNCTIONS[kind]
        options = {"header_patch": True, "cuda_available": [cuda], "cuda_version": cuda, "gpu_targets": ["8.9"]}
        got = plan(fedora, **options)
        assert got["supported"], got["reason"]
        assert any("header patched" in text for text in got["warnings"])
    if kind == "other":
        assert "does not carry" in got["reason"] or "no table row" in got["reason"]
        got = plan(fedora, cuda_version=cuda, gpu_targets=["8.9"], cuda_available=[cuda])
        assert got["supported"], got["reason"]
        assert not got["header_patch"]["needed"]
    assert got["version"] == cuda
    assert got["host_compiler"] == f"/usr/bin/{compiler}"
    assert got["cmake_options"]["CMAKE_CUDA_HOST_COMPILER"] == f"/usr/bin/{compiler}"
    assert got["cmake_options"]["CMAKE_CUDA_COMPILER"] == f"/usr/local/cuda-{cuda}/bin/nvcc"
    assert f"gcc{compiler[4:]}-c++" in got["packages"]["backend"]
    assert f"cuda-nvcc-{cuda.replace('.', '-')}" in got["packages"]["backend"]


@pytest.mark.parametrize(
    ("gcc", "glibc", "cuda", "stock"),
    [
        # with no older compiler packaged, the release's own must do
        ("15.1.1", "2.41", "12.9", False),
        ("15.1.1", "2.41", "13.0", True),
        ("15.2.1", "2.42", "13.2", True),
        ("16.2.1", "2.43", "13.3", False),  # cms-patatrack/pixeltrack-standalone#432
        ("16.2.1", "2.43", "13.4", True),
        ("17", "2.44", "13.5", False),
    ],
)
def test_the_compiler_found_on_a_host_decides(gcc, glibc, cuda, stock):
    host = {"release": 46, "gcc": gcc, "glibc": glibc, "compat": []}
    got = plan(host, cuda_version=cuda, cuda_available=[cuda], gpu_targets=["8.9"])
    assert got["supported"] is stock, got["reason"]
    assert got["host_compiler"] == ("/usr/bin/g++" if stock else "")
    assert any("not in the table" in text for text in got["warnings"])


@pytest.mark.parametrize(
    ("fedora", "options", "version"),
    [
        (42, {}, "13.1"),
        (43, {}, "13.2"),
        (44, {}, "13.4"),
        (44, {"cuda_available": ["13.2", "13.3"]}, "13.3"),
        (42, {"cuda_available": ["12.9"], "header_patch": True, "gpu_targets": ["7.0"]}, "12.9"),
        (45, {"cuda_available": ["13.5"]}, "13.5"),
    ],
)
def test_auto_takes_the_newest_that_works(fedora, options, version):
    got = plan(fedora, **{"gpu_targets": ["8.9"], **options})
    assert got["supported"], got["reason"]
    assert got["version"] == version


@pytest.mark.parametrize(
    ("fedora", "options", "reason", "would_work"),
    [
        (45, {}, "were not known when this table was made", "cuda_repository"),
        (42, {"machine": "aarch64"}, "carries no CUDA toolkit for aarch64", "conda"),
        (43, {"machine": "aarch64"}, "carries no CUDA toolkit for aarch64", "conda"),
        (44, {"machine": "aarch64"}, "carries no CUDA toolkit for aarch64", "conda"),
        (
            44,
            {"machine": "aarch64", "gpu_targets": ["12.1"]},
            "carries no CUDA toolkit for aarch64",
            "CUDA 13.2, 13.3, 13.4, 13.5 from a repository of your own that has it (cuda_repository)",
        ),
        (44, {"gpu_targets": ["7.0"]}, "no longer builds for compute capability 7.0 (V100)", "conda"),
        (42, {"gpu_targets": ["7.0"]}, "no longer builds", "CUDA 12.8, 12.9 with its header patched"),
        (43, {"driver_version": "575.51.03"}, "driver 575.51.03 is too old for CUDA 13.2", "conda"),
        (44, {"cuda_version": "13.4", "driver_version": "550.1"}, "needs 580 or newer", "a driver of 580 or newer"),
        (42, {"cuda_version": "12.8", "gpu_targets": ["12.1"]}, "needs 12.9 or newer", "CUDA 13.0, 13.1 from NVIDIA"),
        (44, {"cuda_version": "12.7"}, "CUDA 12.7 is not in the table", "CUDA 13.3, 13.4 from NVIDIA"),
        (44, {"cuda_version": "14.0"}, "CUDA 14.0 is not in the table", "CUDA 13.3, 13.4 from NVIDIA"),
    ],
)
def test_refusals_say_what_would_work(fedora, options, reason, would_work):
    got = plan(fedora, **{"gpu_targets": ["8.9"], **options})
    assert not got["supported"]
    assert reason in got["reason"]
    assert any(would_work in text for text in got["would_work"]), got["would_work"]


def test_a_patch_level_is_its_release():
    assert plan(43, cuda_version="13.2.1", gpu_targets=["8.9"])["version"] == "13.2"


@pytest.mark.parametrize(
    ("targets", "architectures"),
    [
        (["8.9"], ["89"]),
        (["89", "sm_89", 8.9, 89], ["89"]),
        (["12.0", "8.6"], ["86", "120"]),
        (["sm_120a"], ["120"]),
        (["12.1"], ["121"]),
        (["9.0", "10.0", "10.3"], ["90", "100", "103"]),
        ([], ["75-virtual", "80-virtual", "86-real", "89-real", "120a-real", "121a-real"]),
    ],
)
def test_architectures_come_from_the_gpus_of_the_hosts(targets, architectures):
    got = plan(44, gpu_targets=targets)
    assert got["architectures"] == architectures
    assert got["cmake_options"]["CMAKE_CUDA_ARCHITECTURES"] == ";".join(architectures)
    assert ("no GPU targets were given" in " ".join(got["warnings"])) is (targets == [])


def test_an_older_toolkit_leaves_out_what_it_cannot_build():
    got = plan(42, cuda_version="12.8", header_patch=True, cuda_available=["12.8"])
    assert got["architectures"] == ["75-virtual", "80-virtual", "86-real", "89-real", "120a-real"]


@pytest.mark.parametrize(
    ("cuda", "flags"),
    [
        ("12.9", None),
        ("13.1", None),
        ("13.2", None),
        ("13.3", "-include cuda/iterator"),
        ("13.5", "-include cuda/iterator"),
    ],
)
@pytest.mark.parametrize("method", ["packages", "conda"])
def test_a_cuda_whose_headers_bring_no_iterators_has_them_included(cuda, flags, method):
    got = plan(44, method=method, cuda_version=cuda, cuda_available=[cuda], gpu_targets=["8.9"])
    if cuda == "12.9" and method == "packages":
        assert not got["supported"]  # no compiler; the flags of a refusal do not matter
    assert got["cmake_options"].get("CMAKE_CUDA_FLAGS") == flags


def test_what_would_override_the_host_compiler_is_emptied():
    got = plan(44, gpu_targets=["8.9"])
    assert got["environment"] == dict.fromkeys(
        ("CUDAHOSTCXX", "NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "CUDAARCHS"), ""
    )


def test_the_keys_are_pinned_and_one_without_a_fingerprint_is_announced():
    fingerprints = {
        fedora: plan(fedora, gpu_targets=["8.9"])["repositories"][0]["key_fingerprint"] for fedora in (42, 43, 44)
    }
    assert fingerprints == {
        42: "610C7B14E068A878070DA4E99CD0A493D42D0685",
        43: "",
        44: "129994480EC63D2789BC98E490DFED2F73CD9B30",
    }
    assert any("1940C73E.pub" in text and "not trusted" in text for text in plan(43, gpu_targets=["8.9"])["warnings"])


@pytest.mark.parametrize(
    ("nvidia_driver", "rpmfusion_driver", "excluded", "driver"),
    [
        (False, False, False, []),
        (False, True, True, []),
        (True, False, False, ["nvidia-open"]),
        (True, True, True, ["akmod-nvidia", "xorg-x11-drv-nvidia-cuda"]),
    ],
)
def test_the_driver_has_one_owner(nvidia_driver, rpmfusion_driver, excluded, driver):
    got = plan(44, gpu_targets=["8.9"], nvidia_driver=nvidia_driver, rpmfusion_driver=rpmfusion_driver)
    assert bool(got["repositories"][0]["exclude"]) is excluded
    assert got["packages"]["driver"] == driver


def test_the_open_driver_is_not_given_to_gpus_older_than_turing():
    options = {"header_patch": True, "cuda_available": ["12.9"], "nvidia_driver": True}
    assert plan(42, gpu_targets=["7.0"], **options)["packages"]["driver"] == ["cuda-drivers"]


@pytest.mark.parametrize(
    ("fedora", "options", "expected"),
    [
        (42, {}, True),
        (43, {}, True),
        (44, {}, True),
        (44, {"cuda_gcc_copr": False}, False),
        (45, {"cuda_available": ["13.5"]}, False),  # no branch for it was seen
    ],
)
def test_the_copr_is_there_where_the_release_has_it(fedora, options, expected):
    got = plan(fedora, gpu_targets=["8.9"], **options)
    assert ("cuda-gcc" in got["packages"]["optional"]) is expected
    assert "cuda-gcc" not in got["packages"]["backend"], "no build waits for it"
    assert any("copr" in repository["name"] for repository in got["repositories"]) is expected
    assert all(repository["optional"] == ("copr" in repository["name"]) for repository in got["repositories"])
    # Its profile.d file never decides our own builds.
    assert got["cmake_options"]["CMAKE_CUDA_HOST_COMPILER"].startswith("/usr/bin/g++-")


RPM = """\
glibc 2.43
gcc 16.2.1
gcc14-c++ 14.3.1
package kmod-nvidia is not installed
"""


def test_what_rpm_says_stands_above_the_table():
    host = {"release": 44, "installed": RPM.splitlines()}
    got = plan(host, gpu_targets=["8.9"], cuda_version="12.9", cuda_available=["12.9"], header_patch=True)
    # The table has no gcc14 for this release, and this host has it from elsewhere.
    assert got["host_compiler"] == "/usr/bin/g++-14"
    assert got["gcc"] == "16.2.1"
    # A release that the table does not know is planned for from what was found.
    assert plan({"release": 47, "installed": RPM.splitlines()}, "vulkan")["supported"]
    # What was named stands above both.
    assert plan({"release": 44, "gcc": "17", "installed": RPM.splitlines()}, "cpu")["gcc"] == "17"


@pytest.mark.parametrize("line", ["glibc 44", "gcc 44", "package gcc is not installed", "", "gcc-c++ 16.2.1"])
def test_what_is_no_version_of_the_program_is_left_to_the_table(line):
    got = plan({"release": 44, "installed": [line]}, gpu_targets=["8.9"])
    assert (got["gcc"], got["glibc"]) == ("16.0.1", "2.43")


FROM_FEDORA = "rocblas\t7.1.1\tFedora Project"
FROM_AMD = "hipcc\t1.1.1.70204\tAdvanced Micro Devices, Inc."


@pytest.mark.parametrize(
    ("source", "lines", "reason", "works"),
    [
        (
            "amd",
            [FROM_FEDORA, "hipblas\t7.1.1\tFedora Project", FROM_AMD],
            "hipblas, rocblas of Fedora Project are installed, and dnf would keep them in place of what",
            ["removing that first (dnf remove hipblas rocblas)", "rocm_source: fedora"],
        ),
        (
            "fedora",
            [FROM_FEDORA, FROM_AMD],
            "hipcc of Advanced Micro Devices is installed, and dnf would keep it in place of what",
            ["removing that first (dnf remove hipcc)", "rocm_source: amd"],
        ),
    ],
)
def test_rocm_of_another_vendor_is_not_mixed_in(source, lines, reason, works):
    got = plan({"release": 44, "installed": lines}, "rocm", gpu_targets=["gfx1100"], rocm_source=source)
    assert not got["supported"]
    assert got["reason"].startswith(reason)
    assert got["would_work"] == works


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("fedora", FROM_FEDORA),
        ("amd", FROM_AMD),
        ("amd", "rocblas 7.1.1"),  # nobody asked for its vendor
        ("amd", "rocblas\t7.1.1\tFedora Copr - user"),  # an administrator's own, who may want it so
        ("amd", "glibc\t2.43\tFedora Project"),
        ("amd", "package rocblas is not installed"),
    ],
)
def test_rocm_beside_what_does_not_stand_in_its_way(source, line):
    assert plan({"release": 44, "installed": [line]}, "rocm", gpu_targets=["gfx1100"], rocm_source=source)["supported"]


def test_versions_are_read_beside_vendors():
    lines = ["glibc\t2.43\tFedora Project", "gcc\t16.2.1\tFedora Project", "gcc14-c++\t14.3.1\t(none)"]
    assert plan({"release": 44, "installed": lines}, "cpu")["gcc"] == "16.2.1"
    got = plan(
        {"release": 44, "installed": lines},
        gpu_targets=["8.9"],
        cuda_version="12.9",
        cuda_available=["12.9"],
        header_patch=True,
    )
    assert got["host_compiler"] == "/usr/bin/g++-14"


def test_rpm_is_asked_for_what_the_plan_looks_at():
    names = yaml.safe_load((ROOT / "roles/toolchain/vars/main.yml").read_text(encoding="utf-8"))[
        "__toolchain_rpm_names"
    ]
    assert {*_toolchain.SHARED_ROCM_PACKAGES, *_toolchain.RPMFUSION_DRIVERS, "glibc", "gcc"} <= {*names}
    assert {"hipcc", "rocblas"} <= {*_toolchain.SHARED_ROCM_PACKAGES}


@pytest.mark.parametrize("name", ["akmod-nvidia", "kmod-nvidia", "xorg-x11-drv-nvidia"])
def test_the_driver_of_rpm_fusion_is_found_among_the_packages(name):
    (repository, _copr) = plan({"release": 44, "installed": [f"{name} 580.95.05"]}, gpu_targets=["8.9"])["repositories"]
    assert {"kmod-nvidia*", "libnvidia-ml*", "dkms-nvidia*"} <= {*repository["exclude"]}
    assert not any(fnmatch.fnmatch("libnvidia-container1", pattern) for pattern in repository["exclude"])


@pytest.mark.parametrize(
    ("backend", "options", "runtime"),
    [
        ("cpu", {}, []),
        ("vulkan", {}, ["vulkan-loader", "mesa-vulkan-drivers"]),
        ("rocm", {"gpu_targets": ["gfx1151"]}, ["rocm-hip", "hipblas", "rocblas"]),
        ("rocm", {"rocm_source": "amd"}, ["hip-runtime-amd", "hipblas", "rocblas"]),
        ("cuda", {"gpu_targets": ["8.9"]}, ["cuda-cudart-13-4", "libcublas-13-4"]),
        ("cuda", {"gpu_targets": ["8.9"], "cuda_version": "13.3"}, ["cuda-cudart-13-3", "libcublas-13-3"]),
        ("cuda", {"gpu_targets": ["8.9"], "method": "conda"}, []),
    ],
)
def test_what_a_build_needs_where_it_runs(backend, options, runtime):
    assert plan(44, backend, **options)["packages"]["runtime"] == runtime


def test_one_builder_for_several_backends():
    got = plan(44, ["cuda", "vulkan", "rocm"], gpu_targets=["8.9", "gfx1151"])
    assert got["supported"], got["reason"]
    assert {"glslc", "cuda-nvcc-13-4", "hipcc"} <= {*got["packages"]["backend"]}
    assert got["packages"]["base"] == list(_toolchain.BASE_PACKAGES)
    assert len(got["packages"]["backend"]) == len({*got["packages"]["backend"]})
    assert list(got["backends"]) == ["cpu", "vulkan", "rocm", "cuda"]
    # A build for one backend sees nothing of the others.
    assert got["backends"]["cpu"]["cmake_options"] == {}
    assert got["backends"]["vulkan"]["cmake_options"] == {"GGML_VULKAN": "ON"}
    assert got["backends"]["vulkan"]["environment"] == {}
    assert got["backends"]["rocm"]["architectures"] == ["gfx1151"]
    assert got["backends"]["cuda"]["architectures"] == ["89"]
    assert "ROCM_PATH" not in got["backends"]["cuda"]["environment"]
    assert got["host_compiler"] == "/usr/bin/g++-15"


def test_one_refused_backend_refuses_all_and_is_named():
    got = plan(42, ["vulkan", "rocm"], gpu_targets=["gfx1151"])
    assert not got["supported"]
    assert got["reason"].startswith("for rocm, ROCm 6.3.1")


def test_conda_for_several_backends_is_one_environment():
    got = plan(44, ["cuda", "vulkan"], method="conda", gpu_targets=["8.9"])
    assert {"cuda-nvcc", "shaderc", "cmake"} <= {*got["conda"]["specs"]}
    assert len(got["conda"]["specs"]) == len({*got["conda"]["specs"]})
    # A build for the processor on that builder takes the same compilers.
    assert got["backends"]["cpu"]["cmake_options"]["CMAKE_CXX_COMPILER"].startswith("/opt/llamafleet/toolchain/env")


def test_a_mirror_replaces_only_what_it_names():
    mirror = {"baseurl": "https://mirror.example/cuda", "key_url": "https://mirror.example/key", "key_fingerprint": ""}
    got = plan(44, gpu_targets=["8.9"], cuda_repository=mirror, cuda_gcc_copr=False)
    (repository,) = got["repositories"]
    assert repository["baseurl"] == "https://mirror.example/cuda"
    assert repository["key_url"] == "https://mirror.example/key"
    assert repository["key_fingerprint"] == "129994480EC63D2789BC98E490DFED2F73CD9B30"
    with pytest.raises(ValueError, match="cuda_repository has name, description, baseurl"):
        plan(44, gpu_targets=["8.9"], cuda_repository={"url": "https://mirror.example"})


def test_amds_packages_come_before_fedoras_of_the_same_name():
    (amd,) = plan(44, "rocm", rocm_source="amd", gpu_targets=["gfx1151"])["repositories"]
    assert amd["priority"] == 50
    # Nothing of Fedora is called like NVIDIA's packages, and dnf's own number leaves it at that.
    assert [found["priority"] for found in plan(44, gpu_targets=["8.9"])["repositories"]] == [99, 99]


@pytest.mark.parametrize("number", [1, 99, "40"])
def test_a_site_may_set_the_priority(number):
    (amd,) = plan(44, "rocm", rocm_source="amd", rocm_repository={"priority": number})["repositories"]
    assert amd["priority"] == int(number)


@pytest.mark.parametrize("number", [0, 100, -1, "high", "1.5", 1.5, True, "05"])
def test_a_priority_that_is_none_is_refused(number):
    words = re.escape(
        f"the priority of rocm_repository is {number!r}: it is a whole number from 1 to 99, the lowest wins"
    )
    with pytest.raises(ValueError, match=words):
        plan(44, "rocm", rocm_source="amd", rocm_repository={"priority": number})


@pytest.mark.parametrize(
    ("fedora", "options", "version", "root"),
    [
        (43, {}, "6.4.2", "/usr"),
        (44, {}, "7.1.1", "/usr"),
        (45, {}, "7.2.2", "/usr"),
        (44, {"rocm_version": "7.1.1"}, "7.1.1", "/usr"),
        (43, {"rocm_source": "amd"}, "7.2.4", "/opt/rocm"),
        (42, {"rocm_source": "amd"}, "7.2.4", "/opt/rocm"),
    ],
)
def test_rocm_for_strix_halo(fedora, options, version, root):
    got = plan(fedora, "rocm", gpu_targets=["gfx1151"], **options)
    assert got["supported"], got["reason"]
    assert got["version"] == version
    assert got["environment"]["ROCM_PATH"] == root
    assert got["cmake_options"]["GGML_HIP"] == "ON"
    assert got["cmake_options"]["GPU_TARGETS"] == "gfx1151"
    assert "GGML_HIP_ROCWMMA_FATTN" not in got["cmake_options"], "the build decides it"
    assert got["run_path"] == ([] if root == "/usr" else ["/opt/rocm/lib"])
    assert bool(got["repositories"]) is (root == "/opt/rocm")
    assert all(repository["key_fingerprint"] for repository in got["repositories"])


@pytest.mark.parametrize(
    ("fedora", "options", "reason", "would_work"),
    [
        (42, {"gpu_targets": ["gfx1151"]}, "ROCm 6.3.1 of Fedora 42 is not usable on gfx1151", "rocm_source: amd"),
        (44, {"gpu_targets": ["gfx1151"], "rocm_version": "6.4.2"}, "packages ROCm 7.1.1, not 6.4.2", "rocm_source"),
        (44, {"gpu_targets": ["gfx1151"], "rocm_version": "6.4", "rocm_source": "amd"}, "not in the table", "7.2.4"),
        (44, {"gpu_targets": ["gfx1151"], "machine": "aarch64"}, "made for x86_64", "vulkan"),
        (43, {"gpu_targets": ["gfx1201"], "rocwmma": True}, "1.7.0 does not know RDNA4", "llama_build_rocwmma: false"),
        (44, {"gpu_targets": ["gfx1030"], "rocwmma": True}, "no matrix instructions", "rocwmma: false"),
        (42, {"gpu_targets": ["gfx1100"], "rocwmma": True}, "Fedora 42 has no rocwmma-devel", "rocwmma: false"),
    ],
)
def test_rocm_refusals(fedora, options, reason, would_work):
    got = plan(fedora, "rocm", **options)
    assert not got["supported"]
    assert reason in got["reason"]
    assert would_work in " ".join([got["reason"], *got["would_work"]])


def test_rocm_without_targets_leaves_them_to_the_build():
    got = plan(44, "rocm")
    assert got["supported"]
    assert "GPU_TARGETS" not in got["cmake_options"]
    assert any("the build must name them" in text for text in got["warnings"])


def test_rocwmma_where_it_is_right():
    got = plan(44, "rocm", gpu_targets=["gfx1201", "gfx1100"], rocwmma=True)
    assert got["supported"], got["reason"]
    assert "rocwmma-devel" in got["packages"]["backend"]
    # ROCm 7.1.1 brings rocWMMA 2.1.0, which is right on CDNA again.
    assert plan(44, "rocm", gpu_targets=["gfx942"], rocwmma=True)["supported"]


# On Fedora 43 rocWMMA knows no RDNA4, and gfx1030 has nothing for it.
MIXED = ["gfx1151", "gfx1201", "gfx1030"]


def test_rocwmma_is_held_against_the_gpus_that_are_built_for_with_it():
    got = plan(43, "rocm", gpu_targets=MIXED, rocwmma_targets=["gfx1151"])
    assert got["supported"], got["reason"]
    assert "rocwmma-devel" in got["packages"]["backend"]
    assert got["architectures"] == sorted(MIXED)
    # A builder's own wish does not stand for all that it builds.
    assert plan(43, "rocm", gpu_targets=MIXED, rocwmma=True, rocwmma_targets=["gfx1151"])["supported"]
    assert "1.7.0 does not know RDNA4" in plan(43, "rocm", gpu_targets=MIXED, rocwmma_targets=["gfx1201"])["reason"]
    assert not plan(43, "rocm", gpu_targets=MIXED, rocwmma=True)["supported"]
    assert "rocwmma-devel" not in plan(43, "rocm", gpu_targets=MIXED)["packages"]["backend"]
    with pytest.raises(ValueError, match="'gfx9' is no gfx target that is known"):
        plan(43, "rocm", gpu_targets=MIXED, rocwmma_targets=["gfx9"])


def test_a_leftover_rocm_cannot_capture_the_build():
    got = plan(44, "rocm", gpu_targets=["gfx1151"], leftover_rocm=True)
    assert got["environment"]["ROCM_PATH"] == "/usr"
    assert any("/opt/rocm is left" in text for text in got["warnings"])


def test_vulkan_and_cpu():
    vulkan = plan(44, "vulkan")
    assert {"glslc", "vulkan-headers", "vulkan-loader-devel", "spirv-headers-devel"} <= {*vulkan["packages"]["backend"]}
    assert vulkan["cmake_options"] == {"GGML_VULKAN": "ON"}
    cpu = plan(44, "cpu")
    assert cpu["packages"]["backend"] == []
    assert cpu["cmake_options"] == {}
    for got in (vulkan, cpu):
        assert {"gcc", "gcc-c++", "cmake", "ninja-build", "git", "ccache"} <= {*got["packages"]["base"]}
        assert got["host_compiler"] == "/usr/bin/g++"
        assert got["repositories"] == []


def test_a_conda_folder_that_no_service_sees_is_refused_before_anything_is_installed():
    got = plan(44, method="conda", conda_prefix="/home/me/conda/env")
    assert not got["supported"]
    assert "the service sees nothing below /home" in got["reason"]
    assert plan(44, method="conda", conda_prefix="/srv/conda/env")["run_path"] == ["/srv/conda/env/lib"]


@pytest.mark.parametrize(
    ("options", "version"),
    [
        ({"gpu_targets": ["8.9"]}, "13.0"),
        ({"gpu_targets": ["12.1"]}, "13.0"),
        ({"gpu_targets": ["7.0"]}, "12.9"),
        ({"gpu_targets": ["8.9"], "driver_version": "575.51.03"}, "12.9"),
        ({"gpu_targets": ["8.9"], "cuda_version": "12.6"}, "12.6"),
    ],
)
def test_conda_brings_a_cuda_that_fits_the_gpus_and_the_driver(options, version):
    got = plan(44, method="conda", **options)
    assert got["supported"], got["reason"]
    assert got["version"] == version
    assert f"cuda-version={version}" in got["conda"]["specs"]
    assert not any(spec.startswith(("gcc", "gxx")) and "=" in spec for spec in got["conda"]["specs"])
    assert not any(got["packages"].values())
    assert got["repositories"] == []
    assert got["run_path"] == ["/opt/llamafleet/toolchain/env/lib"]
    outside = [
        value
        for value in (*got["cmake_options"].values(), got["host_compiler"])
        if value.startswith("/") and not value.startswith("/opt/llamafleet/toolchain")
    ]
    assert outside == []


def test_the_program_that_installs_a_lock_is_pinned_for_each_machine():
    programs = [
        plan(44, "cpu", method="conda", machine=machine)["conda"]["micromamba"] for machine in ("x86_64", "aarch64")
    ]
    assert [program["url"].rpartition("/")[2] for program in programs] == [
        "micromamba-linux-64",
        "micromamba-linux-aarch64",
    ]
    assert len({program["sha256"] for program in programs}) == 2


@pytest.mark.parametrize(
    ("backend", "options", "reason"),
    [
        ("rocm", {"gpu_targets": ["gfx1151"]}, "conda-forge has no ROCm toolchain"),
        ("cuda", {"gpu_targets": ["12.1"], "cuda_version": "12.5"}, "needs 12.9 or newer"),
        ("cuda", {"gpu_targets": ["7.0", "11.0"]}, "no longer builds"),
    ],
)
def test_conda_refusals(backend, options, reason):
    got = plan(44, backend, method="conda", **options)
    assert not got["supported"]
    assert reason in got["reason"]
    assert got["would_work"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((41,), {}, "Fedora 41 is not in the table, which knows 42, 43, 44, 45"),
        (("rawhide",), {}, "the Fedora release is a number, got 'rawhide'"),
        ((True,), {}, "the Fedora release is a number, got True"),
        (({"release": 44, "kernel": "6"},), {}, "not kernel"),
        ((44, []), {}, "at least one of cpu, vulkan, rocm, cuda"),
        (({"release": 44, "gcc": "new"},), {}, "gcc is a version such as 15.2.1, got 'new'"),
        (({"release": 44, "glibc": "two"},), {}, "'two' is no version"),
        ((44, "metal"), {}, "backend is one of cpu, vulkan, rocm, cuda, got 'metal'"),
        ((44,), {"method": "snap"}, "method is one of packages, conda, got 'snap'"),
        ((44,), {"machine": "riscv64"}, "machine is one of x86_64, aarch64, got 'riscv64'"),
        ((44, "rocm"), {"rocm_source": "radeon"}, "rocm_source is one of fedora, amd"),
        ((44, "cuda"), {"gpu_targets": "8.9"}, "gpu_targets is a list, got str: '8.9'"),
        ((44, "cuda"), {"gpu_targets": ["4090"]}, "'4090' is no compute capability"),
        ((44, "rocm"), {"gpu_targets": ["gfx9999"]}, "'gfx9999' is no gfx target"),
        ((44, "cuda"), {"cuda_version": "newest"}, "'newest' is no version"),
        ((44, "cuda"), {"gpu_targets": ["8.9"], "driver_version": "new"}, "driver_version is a version"),
        ((44,), {"method": "conda", "conda_prefix": "toolchain"}, "an absolute path, got 'toolchain'"),
    ],
)
def test_wrong_input_is_an_error_that_names_it(arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _toolchain.toolchain_plan(*arguments, **options)


@given(
    fedora=st.sampled_from(FEDORAS),
    backend=st.sampled_from(_toolchain.BACKENDS),
    method=st.sampled_from(_toolchain.METHODS),
    cuda=st.sampled_from(["auto", *EXPECTED]),
    target=st.sampled_from([*_toolchain.GPUS, *_toolchain.GFX]),
    driver=st.sampled_from([None, "470.1", "535.2", "580.65.06"]),
    patch=st.booleans(),
)
def test_no_plan_silences_the_compiler_check_and_every_refusal_has_a_reason(
    fedora, backend, method, cuda, target, driver, patch
):
    targets = [target] if target.startswith("gfx") == (backend == "rocm") and backend in ("rocm", "cuda") else []
    got = plan(
        fedora,
        backend,
        method=method,
        cuda_version=cuda,
        gpu_targets=targets,
        driver_version=driver,
        header_patch=patch,
    )
    assert "allow-unsupported-compiler" not in json.dumps(got)
    assert got["sources"]
    if got["supported"]:
        assert got["host_compiler"]
        assert got["reason"] == ""
        assert "native" not in got["cmake_options"].get("CMAKE_CUDA_ARCHITECTURES", "")
        if backend == "cuda" and method == "packages":
            limit = _toolchain.CUDAS[got["version"]].max_gcc
            assert int(got["host_compiler"].rpartition("-")[2]) <= limit
            assert patch or not got["header_patch"]["needed"]
    else:
        assert got["reason"]


def test_the_rendered_matrix_is_this_table():
    text = (ROOT / "docs" / "toolchain_matrix.md").read_text(encoding="utf-8")
    assert text == _toolchain.matrix(), "run: python3 -m plugins.module_utils._toolchain > docs/toolchain_matrix.md"
