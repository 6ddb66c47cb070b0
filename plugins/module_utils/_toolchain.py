# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which compilers, toolkits and packages build llama.cpp on a Fedora release, and why others do not.

Private to the collection: may change at any time, not for use from elsewhere.

Everything here is a table with the source of each row, and functions that read the tables. Nothing looks at a host.
C(-allow-unsupported-compiler) is never used: it silences the check of the compiler and cures nothing of what the
check is for, nor the second obstacle, the C library's headers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _build_plan, _conda_lock, _rocwmma

BACKENDS = ("cpu", "vulkan", "rocm", "cuda")
METHODS = ("packages", "conda")
ROCM_SOURCES = ("fedora", "amd")
MACHINES = {"x86_64": "x86_64", "aarch64": "sbsa"}

CONDA_PREFIX = "/opt/llamafleet/toolchain/env"

# Variables that reach nvcc, or CMake's choice for it, behind the options' back. CUDAHOSTCXX beats
# -DCMAKE_CUDA_HOST_COMPILER at the first configure; NVCC_APPEND_FLAGS beats even the command line's -ccbin.
# Sources: CMake 3.25 and 4.4 CMakeDetermineCUDACompiler.cmake; nvcc 13.3 --dryrun.
CUDA_ENVIRONMENT = {
    "CUDAHOSTCXX": "",
    "NVCC_CCBIN": "",
    "NVCC_PREPEND_FLAGS": "",
    "NVCC_APPEND_FLAGS": "",
    "CUDAARCHS": "",
}

# What every build needs. openssl-devel gives the server HTTPS; libcurl is not used by these builds.
BASE_PACKAGES = ("gcc", "gcc-c++", "cmake", "ninja-build", "git", "ccache", "openssl-devel")

# The fork includes <spirv/unified1/spirv.hpp>, and its find_package asks for glslc.
VULKAN_PACKAGES = ("vulkan-headers", "vulkan-loader-devel", "glslc", "spirv-headers-devel")
VULKAN_RUN_PACKAGES = ("vulkan-loader", "mesa-vulkan-drivers")
# vulkaninfo, to see what the loader finds.
VULKAN_CHECK_PACKAGES = ("vulkan-tools",)

ROCM_PACKAGES = (
    "hipcc",
    "rocm-hip-devel",
    "hipblas-devel",
    "rocblas-devel",
    "rocm-device-libs",
    "rocm-clang",
    "rocm-lld",
    "rocm-llvm",
    "rocm-comgr-devel",
    "rocminfo",
    "rocm-smi",
)
AMD_ROCM_PACKAGES = (
    "rocm-hip-runtime-devel",
    "hip-devel",
    "hipcc",
    "rocm-llvm",
    "rocm-device-libs",
    "hipblas-devel",
    "rocblas-devel",
    "rocminfo",
    "rocm-smi-lib",
)

# The libraries that ggml's backends are linked with (find_package and target_link_libraries in ggml-hip and ggml-cuda);
# what these need comes with them, and libcuda comes with the driver.
ROCM_RUN_PACKAGES = ("rocm-hip", "hipblas", "rocblas")
AMD_ROCM_RUN_PACKAGES = ("hip-runtime-amd", "hipblas", "rocblas")
CUDA_RUN_PACKAGES = ("cuda-cudart-{}", "libcublas-{}")

# Of one name in both, and in other folders: dnf leaves the one that is there, and the other's ROCm stays incomplete.
SHARED_ROCM_PACKAGES = tuple(
    sorted({*ROCM_PACKAGES, *ROCM_RUN_PACKAGES} & {*AMD_ROCM_PACKAGES, *AMD_ROCM_RUN_PACKAGES})
)
# How the other vendor's name begins in rpm's database, by the source that is wanted: Koji sets the first, rocm-cmake's
# CPACK_PACKAGE_VENDOR the second.
OTHER_ROCM_VENDORS = {"amd": "Fedora Project", "fedora": "Advanced Micro Devices"}

# By what name rpm knows the driver of RPM Fusion.
RPMFUSION_DRIVERS = ("akmod-nvidia", "kmod-nvidia", "xorg-x11-drv-nvidia")

# What NVIDIA's repository must not replace where RPM Fusion's driver is installed. Sources: the packages that NVIDIA's
# driver installation guide lists for Fedora under version locking, and dkms-nvidia, as negativo17, whose packaging it
# is, calls the kernel module. Not libnvidia-*: libnvidia-container is no part of a driver.
DRIVER_EXCLUDES = (
    "cuda-drivers*",
    "dkms-nvidia*",
    "kmod-nvidia*",
    "libnvidia-cfg*",
    "libnvidia-fbc*",
    "libnvidia-gpucomp*",
    "libnvidia-ml*",
    "nvidia-driver*",
    "nvidia-kmod*",
    "nvidia-libXNVCtrl*",
    "nvidia-modprobe*",
    "nvidia-open*",
    "nvidia-persistenced*",
    "nvidia-settings*",
    "nvidia-xconfig*",
    "xorg-x11-nvidia*",
)

# How a person calls a version in an option: "auto", or the digits.
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.\d+)*\Z")


@dataclass(frozen=True)
class CudaRepository:
    """NVIDIA's package repository for one Fedora release."""

    key: str  # file name beside the packages; case matters
    fingerprint: str  # empty: none is published that two sources agree on
    versions: Mapping[str, tuple[str, ...]]  # by the repository's name of the machine
    source: str


@dataclass(frozen=True)
class Release:
    """What one Fedora release has."""

    gcc: int
    gcc_version: str
    glibc: tuple[int, int]
    compat: tuple[int, ...]  # majors of its gccNN-c++ packages
    rocm: str
    rocwmma: bool
    cuda: CudaRepository | None
    source: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cuda:
    """What one CUDA release accepts."""

    max_gcc: int
    drivers: str  # the first driver branch that runs it, by minor-version compatibility
    source: str


@dataclass(frozen=True)
class Gpu:
    """One compute capability."""

    architecture: str
    names: str
    first_cuda: tuple[int, int]
    last_cuda: tuple[int, int] | None = None


@dataclass
class _Draft:
    """A plan in the making."""

    warnings: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def because(self, source: str) -> None:
        if source not in self.sources:
            self.sources.append(source)


_PFO = "Fedora Packages (packages.fedoraproject.org), read after 2026-10-24"
_NVIDIA_REPOS = "indexes of developer.download.nvidia.com/compute/cuda/repos, read 2026-11"

# The key that NVIDIA signs with for Fedora up to 42; the fingerprint as several deployments pin it.
_KEY_UNTIL_42 = "610C7B14E068A878070DA4E99CD0A493D42D0685"

RELEASES: Mapping[int, Release] = {
    42: Release(
        gcc=15,
        gcc_version="15.1.1",
        glibc=(2, 41),
        compat=(14,),
        rocm="6.3.1",
        rocwmma=False,
        cuda=CudaRepository(
            key="D42D0685.pub",
            fingerprint=_KEY_UNTIL_42,
            versions={"x86_64": ("13.0", "13.1"), "sbsa": ()},
            source=f"{_NVIDIA_REPOS}: fedora42 carries CUDA up to 13.1; its sbsa side has no toolkit "
            "(index of 2026-05-12)",
        ),
        source=_PFO,
        remarks=(
            (
                "Fedora 42 is past its end (about 2026-05-26): its packages moved to archives.fedoraproject.org, "
                "so a stock configuration may find none"
            ),
        ),
    ),
    43: Release(
        gcc=15,
        gcc_version="15.2.1",
        glibc=(2, 42),
        compat=(14,),
        rocm="6.4.2",
        rocwmma=True,
        cuda=CudaRepository(
            key="1940C73E.pub",
            fingerprint="",
            versions={"x86_64": ("13.2",), "sbsa": ()},
            source=f"{_NVIDIA_REPOS}: fedora43 carries CUDA 13.2.0 to 13.2.2 only; its sbsa side has no toolkit "
            "(index of 2026-05-12)",
        ),
        source=_PFO,
    ),
    44: Release(
        gcc=16,
        gcc_version="16.0.1",
        glibc=(2, 43),
        compat=(15,),
        rocm="7.1.1",
        rocwmma=True,
        cuda=CudaRepository(
            key="73CD9B30.pub",
            fingerprint="129994480EC63D2789BC98E490DFED2F73CD9B30",
            versions={"x86_64": ("13.3", "13.4"), "sbsa": ()},
            source=f"{_NVIDIA_REPOS}: fedora44 carries CUDA 13.3 and 13.4; its sbsa side has no toolkit "
            "(index of 2026-09-30)",
        ),
        source=_PFO,
    ),
    45: Release(
        gcc=16,
        gcc_version="16.2",
        glibc=(2, 43),
        compat=(15,),
        rocm="7.2.2",
        rocwmma=True,
        cuda=None,
        source=_PFO,
        remarks=("Fedora 45 was not tested with this collection; its glibc is at least 2.43",),
    ),
}

_HOST_CONFIG = "crt/host_config.h of NVIDIA's nvcc {} (PyPI wheel)"

CUDAS: Mapping[str, Cuda] = {
    "12.4": Cuda(13, "525", _HOST_CONFIG.format("12.4.131")),
    "12.5": Cuda(13, "525", _HOST_CONFIG.format("12.5.82")),
    "12.6": Cuda(13, "525", _HOST_CONFIG.format("12.6.85")),
    "12.8": Cuda(14, "525", _HOST_CONFIG.format("12.8.93")),
    "12.9": Cuda(14, "525", _HOST_CONFIG.format("12.9.86")),
    "13.0": Cuda(15, "580", _HOST_CONFIG.format("13.0.88")),
    "13.1": Cuda(15, "580", _HOST_CONFIG.format("13.1.115")),
    "13.2": Cuda(15, "580", _HOST_CONFIG.format("13.2.86")),
    "13.3": Cuda(15, "580", _HOST_CONFIG.format("13.3.73")),
    "13.4": Cuda(16, "580", _HOST_CONFIG.format("13.4.92")),
    "13.5": Cuda(16, "580", _HOST_CONFIG.format("13.5.37")),
}

# Trees of llama.cpp of January to May 2026, the default pin among them, use cuda/iterator without including it. Up to
# CUDA 13.3 other headers bring it; with the CCCL 3.4 of 13.4 argsort.cu and top-k.cu end with `namespace "cuda" has no
# member "make_strided_iterator"`. Seen with nvcc 13.3.73 and 13.4.92, g++ 15 and CCCL 3.1.4 to 3.5.0, with the flag and
# without. From 13.3 on, where others met the error too; CUDA before 13.1 has no such header.
CUDA_INCLUDE_SINCE = (13, 3)
CUDA_INCLUDE = "-include cuda/iterator"
_INCLUDE_SOURCE = "ggml-org/llama.cpp#22936 (2026-05), ggml-org/ggml#1624"

_DRIVERS_SOURCE = "docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"

# The C library's prototypes that clash with CUDA's own: since which glibc, and the first CUDA that gives way. No
# compiler cures this: both headers are read by whichever compiler runs. It is math_functions.h alone: nvcc 13.0.88 with
# glibc 2.43 and g++ 15 refuses the header as delivered, and compiles rsqrt, sinpi and cospi once its prototypes are
# patched. What math_functions.hpp defines of them is for compilers other than nvcc (NixOS/nixpkgs#498678 patches both).
GLIBC_CONFLICTS = (
    ((2, 41), (13, 0), ("sinpi", "sinpif", "cospi", "cospif")),
    ((2, 42), (13, 2), ("rsqrt", "rsqrtf")),
)
_CONFLICT_SOURCE = "crt/math_functions.h of the same wheels; the fork's docs/build.md, NixOS/nixpkgs#498678"

GPUS: Mapping[str, Gpu] = {
    "5.0": Gpu("50", "GTX 750, Quadro M", (6, 5), (12, 9)),
    "5.2": Gpu("52", "GTX 900, Tesla M40", (6, 5), (12, 9)),
    "6.0": Gpu("60", "P100", (8, 0), (12, 9)),
    "6.1": Gpu("61", "GTX 10, P40", (8, 0), (12, 9)),
    "7.0": Gpu("70", "V100", (9, 0), (12, 9)),
    "7.2": Gpu("72", "Jetson Xavier", (9, 2), (12, 9)),
    "7.5": Gpu("75", "T4, RTX 20", (10, 0)),
    "8.0": Gpu("80", "A100", (11, 0)),
    "8.6": Gpu("86", "RTX 30, A40", (11, 1)),
    "8.7": Gpu("87", "Jetson Orin", (11, 4)),
    "8.9": Gpu("89", "RTX 40, L4, L40", (11, 8)),
    "9.0": Gpu("90", "H100, H200, GH200", (11, 8)),
    "10.0": Gpu("100", "B200", (12, 8)),
    "10.3": Gpu("103", "B300", (12, 9)),
    "11.0": Gpu("110", "Thor", (13, 0)),
    "12.0": Gpu("120", "RTX 50, RTX PRO 6000 Blackwell", (12, 8)),
    "12.1": Gpu("121", "GB10 (DGX Spark)", (12, 9)),
}
_GPUS_SOURCE = "nixpkgs cuda.nix; the fork's ggml/src/ggml-cuda/CMakeLists.txt"

# The fork's own list for a build that does not look at the GPU of the builder.
PORTABLE_ARCHITECTURES = ("75-virtual", "80-virtual", "86-real", "89-real", "120a-real", "121a-real")

GFX: Mapping[str, str] = {
    "gfx950": "MI350X, MI355X",
    "gfx942": "MI300A, MI300X, MI325X",
    "gfx90a": "MI210, MI250",
    "gfx908": "MI100",
    "gfx906": "MI50, MI60",
    "gfx1201": "RX 9070, R9700",
    "gfx1200": "RX 9060",
    "gfx1153": "820M",
    "gfx1152": "Krackan",
    "gfx1151": "Strix Halo",
    "gfx1150": "Strix Point (HX 370)",
    "gfx1103": "780M",
    "gfx1102": "RX 7600",
    "gfx1101": "RX 7700, RX 7800 XT",
    "gfx1100": "RX 7900, W7900",
    "gfx1036": "Raphael",
    "gfx1035": "680M",
    "gfx1034": "RX 6500",
    "gfx1033": "Van Gogh",
    "gfx1032": "RX 6600",
    "gfx1031": "RX 6700",
    "gfx1030": "RX 6800, RX 6900",
    "gfx1010": "RX 5700",
}
_GFX_SOURCE = "ROCm/TheRock RELEASES.md"

# AMD builds for RHEL; the classic stream is the one whose key has a published fingerprint. It is the stream that
# kyuz0's Dockerfile.rocm-7.2.4-turboquant installs on Fedora 43.
AMD_ROCM_VERSIONS = ("7.2.4",)
AMD_ROCM_BASEURL = "https://repo.radeon.com/rocm/rhel10/{version}/main"
AMD_ROCM_KEY = "https://repo.radeon.com/rocm/rocm.gpg.key"
AMD_ROCM_FINGERPRINT = "CA8BB4727A47B4D09B4EE8969386B48A1A693C5C"
# Fedora has packages of the same names with higher versions (hipcc 20 against AMD's 1.1.1, rocblas, hipblas), and dnf
# takes the highest version among repositories of one priority. Source: the same number in kyuz0's
# Dockerfile.rocm-7.2.4.
AMD_ROCM_PRIORITY = 50
# Of a repository that says nothing of it; the lowest number wins.
DNF_PRIORITY = 99

COPR_BASEURL = "https://download.copr.fedorainfracloud.org/results/slaanesh/cuda-gcc/fedora-{release}-{machine}/"
COPR_KEY = "https://download.copr.fedorainfracloud.org/results/slaanesh/cuda-gcc/pubkey.gpg"
COPR_FINGERPRINT = "E46594C63703DCEE9DF6E1B2EE96A7C97CF67FC8"
# Its git branches; the compiler that the package of each requires.
COPR_RELEASES = {42: 14, 43: 14, 44: 15}
_COPR_SOURCE = "negativo17/cuda-gcc, branches of 2024-12 to 2026-03; the key of distribution-gpg-keys 1.121"

# The packages that conda-forge builds its own llama.cpp with, on linux-64 and linux-aarch64, for CUDA 12.9 and 13.0 and
# Vulkan, and what a build by hand needs besides. Source: conda-forge/llama.cpp-feedstock 9397f29 of 2026-07-20, whose
# builds take GCC 14 and, with CUDA 13.0, make code for GPUs from 7.5 to 12.1.
CONDA_BASE = ("c-compiler", "cxx-compiler", "cmake", "ninja", "git", "ccache", "openssl", "pkg-config")
CONDA_CUDA = ("cuda-nvcc", "cuda-cudart-dev", "cuda-driver-dev", "cuda-cccl", "libcublas-dev")
# Servers and GB10 are sbsa; tegra is another CUDA, of Jetson boards, which some versions have beside it
# (conda-forge/arm-variant-feedstock; libcublas only constrains it, so nothing else of a solve has to name it).
CONDA_CUDA_OF = {"aarch64": ("arm-variant=*=sbsa",)}
CONDA_VULKAN = ("libvulkan-headers", "libvulkan-loader", "shaderc", "spirv-headers")
CONDA_PLATFORMS = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}
# The program that installs a lock; github.com/mamba-org/micromamba-releases, release 2.9.0-0 and its files' digests.
MICROMAMBA_URL = "https://github.com/mamba-org/micromamba-releases/releases/download/2.9.0-0/micromamba-"
MICROMAMBA_SHA256 = {
    "linux-64": "366cd9cd8be14df1ab8ed50352a82111082a36686b2d389fdb79a92c3fafb3e3",
    "linux-aarch64": "9f93b974adcb4d166996af969b6cd371287d1a3e52733704727884d9b74cb7a7",
}
# Tried in this order when the version is left to the plan.
CONDA_CUDA_AUTO = ("13.0", "12.9")


def _pair(version: str) -> tuple[int, int]:
    match = _VERSION.match(version)
    if match is None:
        raise ValueError(f"{version!r} is no version: two or three numbers with dots are, for example 13.1")
    return int(match.group(1)), int(match.group(2))


def _dotted(pair: Iterable[int]) -> str:
    return ".".join(str(number) for number in pair)


def _one_of(name: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}, got {value!r}")
    return str(value)


def _host_found(host: Any) -> dict[str, Any]:
    found = dict(host) if isinstance(host, Mapping) else {"release": host}
    unknown = sorted(set(found) - {"release", "gcc", "glibc", "compat", "machine", "installed"})
    if unknown:
        raise ValueError(f"a host has release, gcc, glibc, compat, installed and machine, not {', '.join(unknown)}")
    return found


def release_number(host: Any) -> int:
    """Return the Fedora release of a host."""
    number = _host_found(host).get("release")
    if isinstance(number, str) and number.isdigit():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"the Fedora release is a number, got {number!r}")
    return number


def machine_of(host: Any, machine: str | None) -> str:
    """Return the architecture to plan for: the named one, or the host's own."""
    return _one_of("machine", machine or _host_found(host).get("machine") or "x86_64", tuple(MACHINES))


def _packages_of(lines: Iterable[Any]) -> dict[str, str]:
    """Return version by name from lines `NAME VERSION`; `package NAME is not installed` is of one that is not there.

    With tabs between them lines may have the vendor as a third field, which is left out here.
    """
    rows = [str(line).split("\t")[:2] if "\t" in str(line) else str(line).split() for line in lines]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def installed_versions(lines: Iterable[Any], base: Release | None) -> dict[str, Any]:
    """Return the versions of the C library and the compilers among `rpm --query --queryformat '%{NAME} %{VERSION}\\n'`.

    What does not look like a version of the program is left to the table, and so is what is not installed yet.
    """
    packages = _packages_of(lines)
    found: dict[str, Any] = {}
    if re.fullmatch(r"2\.\d+(\.\d+)*", packages.get("glibc", "")):
        found["glibc"] = packages["glibc"]
    if re.fullmatch(r"\d+\.\d+(\.\d+)*", packages.get("gcc", "")):
        found["gcc"] = packages["gcc"]
    older = {int(match.group(1)) for match in (re.fullmatch(r"gcc(\d+)-c\+\+", name) for name in packages) if match}
    if older:
        found["compat"] = sorted({*older, *(base.compat if base is not None else ())})
    return found


def other_rocm_installed(host: Any, rocm_source: str) -> list[str]:
    """Return the names of installed ROCm packages that are not of this source and stand in the way of those that are.

    Where rpm was not asked for the vendors nothing is known, and nothing is returned.
    """
    rows = [str(line).split("\t") for line in _host_found(host).get("installed") or ()]
    other = OTHER_ROCM_VENDORS[rocm_source]
    return sorted(
        row[0] for row in rows if len(row) == 3 and row[0] in SHARED_ROCM_PACKAGES and row[2].startswith(other)
    )


def other_rocm_refusal(host: Any, rocm_source: str) -> tuple[str, list[str]] | None:
    """Return why ROCm of this source cannot come beside what is installed, and what would work; None where it can."""
    names = other_rocm_installed(host, rocm_source)
    if not names:
        return None
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    reason = (
        f"{', '.join(names)} of {OTHER_ROCM_VENDORS[rocm_source]} {are} installed, and dnf would keep {them} in place "
        f"of what rocm_source {rocm_source} has under the same name"
    )
    other = next(source for source in ROCM_SOURCES if source != rocm_source)
    return reason, [f"removing that first (dnf remove {' '.join(names)})", f"rocm_source: {other}"]


def rpmfusion_driver_installed(host: Any) -> bool:
    """Say whether the driver of RPM Fusion is among what rpm says to be installed."""
    return not set(RPMFUSION_DRIVERS).isdisjoint(_packages_of(_host_found(host).get("installed") or ()))


def release_of(host: Any) -> tuple[int, Release]:
    """Return the release that a host is, with what was found on it in place of what the table expects.

    A host is a release number, or a mapping with `release` and, as found, `gcc`, `glibc` and `compat`, or `installed`,
    the lines in which rpm says these.
    """
    found = _host_found(host)
    number = release_number(host)
    base = RELEASES.get(number)
    found = {**installed_versions(found.get("installed") or (), base), **found}
    if base is None and not ("gcc" in found and "glibc" in found):
        raise ValueError(
            f"Fedora {number} is not in the table, which knows {', '.join(str(known) for known in RELEASES)}; "
            "give the gcc and glibc versions found on the host to plan for it all the same"
        )
    if base is None:
        base = Release(
            gcc=0,
            gcc_version="",
            glibc=(0, 0),
            compat=(),
            rocm="",
            rocwmma=False,
            cuda=None,
            source="versions found on the host",
            remarks=(f"Fedora {number} is not in the table: planned from the versions found on the host alone",),
        )
    gcc_version = str(found["gcc"]) if found.get("gcc") is not None else base.gcc_version
    glibc = _pair(str(found["glibc"])) if found.get("glibc") is not None else base.glibc
    compat = base.compat if found.get("compat") is None else tuple(int(major) for major in found["compat"])
    major = re.match(r"(\d+)(?:\.|\Z)", gcc_version)
    if major is None:
        raise ValueError(f"gcc is a version such as 15.2.1, got {gcc_version!r}")
    return number, Release(
        gcc=int(major.group(1)),
        gcc_version=gcc_version,
        glibc=glibc,
        compat=compat,
        rocm=base.rocm,
        rocwmma=base.rocwmma,
        cuda=base.cuda,
        source=base.source,
        remarks=base.remarks,
    )


def glibc_conflicts(glibc: tuple[int, int], cuda: str) -> list[str]:
    """Return the functions whose prototypes in the C library and in that CUDA contradict each other."""
    return [name for since, fixed, names in GLIBC_CONFLICTS if glibc >= since and _pair(cuda) < fixed for name in names]


def host_compiler(release: Release, cuda: str) -> int | None:
    """Return the GCC that the release has and nvcc accepts: the packaged older one first, then its own.

    The older one first, because it is there anyway for people who call nvcc by hand, and because one choice then
    serves every CUDA that the release can have.
    """
    limit = CUDAS[cuda].max_gcc
    for major in sorted(release.compat, reverse=True):
        if major <= limit:
            return major
    return release.gcc if release.gcc <= limit else None


def cuda_verdict(release: Release, cuda: str, machine: str = "x86_64") -> dict[str, Any]:
    """Return what stands between a release and one CUDA version; `state` is the short form.

    packages    NVIDIA's repository for the release has it, and a compiler of the release builds it
    elsewhere   a compiler of the release builds it, but the repository for the release does not have it
    patch       like one of the two above, once CUDA's own header is patched
    no compiler no packaged compiler is old enough
    """
    compiler = host_compiler(release, cuda)
    functions = glibc_conflicts(release.glibc, cuda)
    repository = release.cuda is not None and cuda in release.cuda.versions.get(MACHINES[machine], ())
    if compiler is None:
        state = "no compiler"
    elif functions:
        state = "patch"
    else:
        state = "packages" if repository else "elsewhere"
    return {
        "state": state,
        "compiler": compiler,
        "stock": release.gcc <= CUDAS[cuda].max_gcc,
        "functions": functions,
        "repository": repository,
    }


def cuda_architectures(targets: Iterable[Any]) -> list[str]:
    """Return the compute capabilities of targets such as 8.9, 89 or sm_89, each once and in order."""
    found = []
    for target in targets:
        text = re.sub(r"\A(?:sm_|compute_)", "", str(target)).rstrip("a")
        if re.fullmatch(r"\d{2,3}", text):
            text = f"{text[:-1]}.{text[-1]}"
        if text not in GPUS:
            raise ValueError(
                f"{target!r} is no compute capability that is known: those are "
                f"{', '.join(GPUS)} (nvidia-smi --query-gpu=compute_cap prints it)"
            )
        if text not in found:
            found.append(text)
    return sorted(found, key=_pair)


def gfx_targets(targets: Iterable[Any]) -> list[str]:
    """Return gfx names, each once and in order, or raise ValueError where one is unknown."""
    found = []
    for target in targets:
        name = str(target).lower()
        if name not in GFX:
            raise ValueError(
                f"{target!r} is no gfx target that is known: those are {', '.join(GFX)} (rocminfo prints it)"
            )
        if name not in found:
            found.append(name)
    return sorted(found)


def driver_problem(cuda: str, driver_version: str | None) -> str:
    """Say why a driver does not run programs of that CUDA, or return an empty string."""
    if not driver_version:
        return ""
    match = re.match(r"(\d+)(?:\.|\Z)", str(driver_version))
    if match is None:
        raise ValueError(f"driver_version is a version such as 580.95.05, got {driver_version!r}")
    floor = CUDAS[cuda].drivers
    if int(match.group(1)) >= int(floor):
        return ""
    return (
        f"driver {driver_version} is too old for CUDA {cuda}, which needs {floor} or newer: programs would end at "
        "their start with cudaErrorInsufficientDriver (35)"
    )


def _target_problem(cuda: str, capabilities: Iterable[str]) -> str:
    version = _pair(cuda)
    for capability in capabilities:
        gpu = GPUS[capability]
        if version < gpu.first_cuda:
            return (
                f"CUDA {cuda} cannot build for compute capability {capability} ({gpu.names}), "
                f"which needs {_dotted(gpu.first_cuda)} or newer"
            )
        if gpu.last_cuda is not None and version > gpu.last_cuda:
            return (
                f"CUDA {cuda} no longer builds for compute capability {capability} ({gpu.names}), "
                f"which ended with {_dotted(gpu.last_cuda)}"
            )
    return ""


def _refused(plan: dict[str, Any], reason: str, would_work: Iterable[str]) -> dict[str, Any]:
    return {**plan, "supported": False, "reason": reason, "would_work": list(would_work)}


def _empty_plan(number: int, release: Release, backend: str, method: str, draft: _Draft) -> dict[str, Any]:
    return {
        "supported": True,
        "reason": "",
        "would_work": [],
        "backend": backend,
        "method": method,
        "release": number,
        "gcc": release.gcc_version,
        "glibc": _dotted(release.glibc),
        "version": "",
        "architectures": [],
        "repositories": [],
        "packages": {"base": [], "backend": [], "driver": [], "optional": [], "runtime": []},
        "host_compiler": "",
        "environment": {},
        "cmake_options": {},
        "run_path": [],
        "header_patch": {"needed": False, "functions": [], "files": []},
        "driver_minimum": "",
        "conda": {},
        "warnings": draft.warnings,
        "sources": draft.sources,
    }


def _cuda_works(release: Release, capabilities: Sequence[str], driver: str | None, machine: str) -> list[str]:
    """Say which CUDA versions would do on the release, in the words of the options that ask for them."""
    native, elsewhere, patched = [], [], []
    for cuda in CUDAS:
        verdict = cuda_verdict(release, cuda, machine)
        if _target_problem(cuda, capabilities) or driver_problem(cuda, driver):
            continue
        if verdict["state"] == "packages":
            native.append(cuda)
        elif verdict["state"] == "elsewhere":
            elsewhere.append(cuda)
        elif verdict["state"] == "patch":
            patched.append(cuda)
    works = []
    if native:
        works.append(f"CUDA {', '.join(native)} from NVIDIA's repository for this release")
    if elsewhere:
        works.append(f"CUDA {', '.join(elsewhere)} from a repository of your own that has it (cuda_repository)")
    if patched:
        works.append(f"CUDA {', '.join(patched)} with its header patched (header_patch) and a repository that has it")
    if any(not _target_problem(cuda, capabilities) and not driver_problem(cuda, driver) for cuda in CUDAS):
        works.append("the method conda, which brings its own compiler and C library")
    return works


def _choose_cuda(
    release: Release,
    wanted: str,
    capabilities: Sequence[str],
    driver: str | None,
    machine: str,
    header_patch: bool,
    available: Sequence[str] | None,
) -> tuple[str, str]:
    """Return the CUDA version to use and an empty string, or an empty string and the reason why there is none."""
    if wanted != "auto":
        version = _dotted(_pair(wanted))
        if version not in CUDAS:
            return "", f"CUDA {wanted} is not in the table, which knows {', '.join(CUDAS)}"
        return version, ""
    if available is not None:
        offered = [_dotted(_pair(version)) for version in available]
    elif release.cuda is not None:
        offered = list(release.cuda.versions.get(MACHINES[machine], ()))
    else:
        return "", (
            "what NVIDIA's repository for this Fedora carries, and its key, were not known when this table was made"
        )
    if not offered:
        return "", f"NVIDIA's repository for this Fedora carries no CUDA toolkit for {machine}"
    reasons = []
    for version in sorted((known for known in offered if known in CUDAS), key=_pair, reverse=True):
        verdict = cuda_verdict(release, version, machine)
        problem = _target_problem(version, capabilities) or driver_problem(version, driver)
        if not problem and verdict["compiler"] is None:
            problem = f"CUDA {version} accepts no compiler of this release"
        if not problem and verdict["functions"] and not header_patch:
            problem = f"CUDA {version} contradicts the C library's {', '.join(verdict['functions'])}"
        if not problem:
            return version, ""
        reasons.append(problem)
    return "", "; ".join(reasons) or f"none of the offered CUDA versions ({', '.join(offered)}) is in the table"


def _plan_cuda(
    plan: dict[str, Any],
    draft: _Draft,
    number: int,
    release: Release,
    machine: str,
    cuda_version: str,
    targets: Sequence[Any],
    driver_version: str | None,
    header_patch: bool,
    nvidia_driver: bool,
    rpmfusion_driver: bool,
    cuda_gcc_copr: bool,
    cuda_available: Sequence[str] | None,
    cuda_repository: Mapping[str, Any] | None,
    copr_repository: Mapping[str, Any] | None,
) -> dict[str, Any]:
    capabilities = cuda_architectures(targets)
    if cuda_repository is not None and cuda_available is None:
        # An operator's own repository is taken at the word: it is not ours to say what it holds.
        cuda_available = [cuda_version] if cuda_version != "auto" else None
    version, reason = _choose_cuda(
        release, cuda_version, capabilities, driver_version, machine, header_patch, cuda_available
    )
    works = _cuda_works(release, capabilities, driver_version, machine)
    if not version:
        if release.cuda is None:
            works = [
                (
                    "naming the version (cuda_version) and a repository that has it (cuda_repository), for example "
                    "NVIDIA's for the next older Fedora"
                ),
                *works,
            ]
        return _refused(plan, reason, works)
    plan["version"] = version
    plan["driver_minimum"] = CUDAS[version].drivers
    draft.because(CUDAS[version].source)
    draft.because(_DRIVERS_SOURCE)

    problem = _target_problem(version, capabilities)
    draft.because(_GPUS_SOURCE)
    if problem:
        return _refused(plan, problem, works)
    problem = driver_problem(version, driver_version)
    if problem:
        newer = f"a driver of {CUDAS[version].drivers} or newer"
        return _refused(plan, problem, [newer, *works])

    verdict = cuda_verdict(release, version, machine)
    if verdict["compiler"] is None:
        compilers = ", ".join(f"g++-{major}" for major in sorted({*release.compat, release.gcc}))
        return _refused(
            plan,
            f"CUDA {version} accepts GCC up to {CUDAS[version].max_gcc}, and Fedora {number} has {compilers}",
            works,
        )
    if verdict["functions"]:
        draft.because(_CONFLICT_SOURCE)
        include = f"/usr/local/cuda-{version}/targets/{_cuda_target(machine)}/include/crt"
        plan["header_patch"] = {
            "needed": True,
            "functions": verdict["functions"],
            "files": [f"{include}/math_functions.h"],
        }
        if not header_patch:
            return _refused(
                plan,
                f"CUDA {version} declares {', '.join(verdict['functions'])} without noexcept and glibc "
                f"{_dotted(release.glibc)} declares them with it; no other compiler cures that",
                works,
            )
        draft.warnings.append(
            f"CUDA {version} is used with its header patched ({', '.join(verdict['functions'])}): an update of the "
            "toolkit's packages undoes the patch, and the role puts it back"
        )
    offered = cuda_available is not None or cuda_repository is not None or verdict["repository"]
    if not offered:
        where = release.cuda.source if release.cuda is not None else "no table row for this release"
        return _refused(
            plan,
            f"a compiler of Fedora {number} builds CUDA {version}, but NVIDIA's repository for it does not carry that "
            f"version ({where})",
            ["a repository of your own that has it (cuda_repository)", *works],
        )

    if release.cuda is not None and cuda_repository is None:
        draft.because(release.cuda.source)
    plan["repositories"].append(cuda_repository_of(number, release, machine, cuda_repository, rpmfusion_driver))
    if not plan["repositories"][0]["key_fingerprint"]:
        draft.warnings.append(
            f"no fingerprint is published for the key {plan['repositories'][0]['key_url']}: compare it with NVIDIA "
            "and set it, the key is not trusted without"
        )
    suffix = version.replace(".", "-")
    backend = [
        f"cuda-minimal-build-{suffix}",
        f"cuda-nvcc-{suffix}",
        f"cuda-crt-{suffix}",
        f"cuda-cudart-devel-{suffix}",
        f"cuda-driver-devel-{suffix}",
        f"libcublas-devel-{suffix}",
    ]
    for major in sorted(release.compat):
        backend += [f"gcc{major}", f"gcc{major}-c++"]
    plan["packages"]["runtime"] = cuda_run_packages(version)
    if cuda_gcc_copr and number in COPR_RELEASES and machine == "x86_64":
        draft.because(_COPR_SOURCE)
        plan["repositories"].append(
            {
                "name": "copr:copr.fedorainfracloud.org:slaanesh:cuda-gcc",
                "description": "Copr repo for cuda-gcc owned by slaanesh",
                "baseurl": COPR_BASEURL.format(release=number, machine=machine),
                "key_url": COPR_KEY,
                "key_fingerprint": COPR_FINGERPRINT,
                "exclude": [],
                "priority": DNF_PRIORITY,
                **_override("copr_repository", copr_repository),
                "variable": "toolchain_cuda_gcc_copr_repository",
                "optional": True,
            }
        )
        # For people at a shell: no build waits for it.
        plan["packages"]["optional"] = ["cuda-gcc"]
    plan["packages"]["backend"] = backend
    if nvidia_driver:
        old = any(_pair(capability) < (7, 5) for capability in capabilities)
        if rpmfusion_driver:
            plan["packages"]["driver"] = ["akmod-nvidia", "xorg-x11-drv-nvidia-cuda"]
        else:
            # The open kernel modules begin with Turing.
            plan["packages"]["driver"] = ["cuda-drivers"] if old else ["nvidia-open"]
    root = f"/usr/local/cuda-{version}"
    compiler = verdict["compiler"]
    plan["host_compiler"] = "/usr/bin/g++" if compiler == release.gcc else f"/usr/bin/g++-{compiler}"
    plan["cmake_options"] = {
        "GGML_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": f"{root}/bin/nvcc",
        "CUDAToolkit_ROOT": root,
    }
    _finish_cuda(plan, draft, capabilities, version)
    return plan


def _cuda_target(machine: str) -> str:
    return "x86_64-linux" if machine == "x86_64" else "sbsa-linux"


def _finish_cuda(plan: dict[str, Any], draft: _Draft, capabilities: Sequence[str], version: str) -> None:
    """Add what every build with nvcc needs, wherever the toolkit came from."""
    if capabilities:
        architectures = [GPUS[capability].architecture for capability in capabilities]
    else:
        architectures = [
            name
            for name in PORTABLE_ARCHITECTURES
            if _pair(version) >= GPUS[cuda_architectures([name.split("-", maxsplit=1)[0]])[0]].first_cuda
        ]
        draft.warnings.append(
            "no GPU targets were given, so the build covers "
            f"{', '.join(architectures)}: it is larger, and GPUs between them compile kernels at their first start"
        )
    plan["architectures"] = architectures
    plan["environment"] = dict(CUDA_ENVIRONMENT)
    plan["cmake_options"]["CMAKE_CUDA_ARCHITECTURES"] = ";".join(architectures)
    plan["cmake_options"]["CMAKE_CUDA_HOST_COMPILER"] = plan["host_compiler"]
    if _pair(version) >= CUDA_INCLUDE_SINCE:
        plan["cmake_options"]["CMAKE_CUDA_FLAGS"] = CUDA_INCLUDE
        draft.because(_INCLUDE_SOURCE)


def cuda_run_packages(version: str) -> list[str]:
    """Return NVIDIA's packages with the libraries that a build made with that CUDA needs.

    Source: NVIDIA's own container images, which install these two of the toolkit for such programs.
    """
    return [name.format(version.replace(".", "-")) for name in CUDA_RUN_PACKAGES]


def cuda_repository_of(
    number: int, release: Release | None, machine: str, override: Mapping[str, Any] | None, exclude_driver: bool
) -> dict[str, Any]:
    """Return NVIDIA's repository for a release, or what a site has in its place."""
    place = f"https://developer.download.nvidia.com/compute/cuda/repos/fedora{number}/{MACHINES[machine]}"
    known = release.cuda if release is not None else None
    repository = {
        "name": f"cuda-fedora{number}-{MACHINES[machine]}",
        "description": f"NVIDIA CUDA for Fedora {number}",
        "baseurl": place,
        "key_url": f"{place}/{known.key}" if known is not None else "",
        "key_fingerprint": known.fingerprint if known is not None else "",
        "exclude": list(DRIVER_EXCLUDES) if exclude_driver else [],
        "priority": DNF_PRIORITY,
    }
    whose = {"variable": "toolchain_cuda_repository", "optional": False}
    return {**repository, **_override("cuda_repository", override), **whose}


def rocm_repository_of(version: str, override: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return AMD's repository of a ROCm release, or what a site has in its place."""
    return {
        "name": f"rocm-{version}",
        "description": f"AMD ROCm {version}",
        "baseurl": AMD_ROCM_BASEURL.format(version=version),
        "key_url": AMD_ROCM_KEY,
        "key_fingerprint": AMD_ROCM_FINGERPRINT,
        # AMD's kernel module is made for other kernels than Fedora's.
        "exclude": ["amdgpu-dkms*"],
        "priority": AMD_ROCM_PRIORITY,
        **_override("rocm_repository", override),
        "variable": "toolchain_rocm_repository",
        "optional": False,
    }


def _override(name: str, override: Mapping[str, Any] | None) -> dict[str, Any]:
    if override is None:
        return {}
    known = ("name", "description", "baseurl", "key_url", "key_fingerprint", "exclude", "priority")
    unknown = sorted(set(override) - set(known))
    if unknown:
        raise ValueError(f"{name} has {', '.join(known)}, not {', '.join(unknown)}")
    given = {key: value for key, value in override.items() if value not in (None, "")}
    if "priority" in given:
        given["priority"] = _priority(name, given["priority"])
    return given


def _priority(name: str, value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]?", str(value)):
        raise ValueError(
            f"the priority of {name} is {value!r}: it is a whole number from 1 to 99, the lowest wins, and "
            f"{DNF_PRIORITY} is that of a repository that names none, such as Fedora's"
        )
    return int(value)


def _plan_rocm(
    plan: dict[str, Any],
    draft: _Draft,
    number: int,
    release: Release,
    machine: str,
    rocm_version: str,
    rocm_source: str,
    targets: Sequence[Any],
    rocwmma: bool,
    rocwmma_targets: Sequence[Any],
    leftover_rocm: bool,
    rocm_repository: Mapping[str, Any] | None,
    other_rocm: tuple[str, list[str]] | None,
) -> dict[str, Any]:
    names = gfx_targets(targets)
    draft.because(_GFX_SOURCE)
    if machine != "x86_64":
        return _refused(plan, f"ROCm is made for x86_64, not for {machine}", ["the backend vulkan or cpu"])
    if other_rocm:
        return _refused(plan, *other_rocm)
    if rocm_source == "fedora":
        version, root = release.rocm, "/usr"
        clang = "/usr/lib64/rocm/llvm/bin/clang++"
        if not version:
            return _refused(
                plan,
                f"what ROCm Fedora {number} packages was not known when this table was made",
                ["rocm_source: amd", "the backend vulkan"],
            )
        if rocm_version not in ("auto", version, _dotted(_pair(version))):
            return _refused(
                plan,
                f"Fedora {number} packages ROCm {version}, not {rocm_version}",
                [f"rocm_version: auto (that is {version})", f"rocm_source: amd ({', '.join(AMD_ROCM_VERSIONS)})"],
            )
        packages = list(ROCM_PACKAGES)
    else:
        version = AMD_ROCM_VERSIONS[-1] if rocm_version == "auto" else rocm_version
        if version not in AMD_ROCM_VERSIONS and rocm_repository is None:
            return _refused(
                plan,
                f"AMD's ROCm {version} is not in the table, which knows {', '.join(AMD_ROCM_VERSIONS)}",
                ["one of those", "a repository of your own that has it (rocm_repository)"],
            )
        _pair(version)
        root, clang = "/opt/rocm", "/opt/rocm/llvm/bin/clang++"
        packages = list(AMD_ROCM_PACKAGES)
        plan["repositories"].append(rocm_repository_of(version, rocm_repository))
        # AMD's packages do not tell the loader of their folder: its installation guide has people do that.
        plan["run_path"] = [f"{root}/lib"]
        draft.because("kyuz0/amd-strix-halo-toolboxes Dockerfile.rocm-7.2.4-turboquant, 2026-08")
        draft.warnings.append("AMD builds ROCm for RHEL 10, not for Fedora: it is used so, and not supported by AMD")
    plan["version"] = version
    draft.because(release.source)

    if rocm_source == "fedora" and leftover_rocm:
        draft.warnings.append(
            "a directory /opt/rocm is left on the host: the build would take it for its ROCm, so ROCM_PATH names "
            f"{root}; remove it where nothing else needs it"
        )
    if "gfx1151" in names and _pair(version) < (6, 4):
        return _refused(
            plan,
            f"ROCm {version} of Fedora {number} is not usable on gfx1151 (Strix Halo)",
            ["Fedora 43 or newer (ROCm 6.4.2 with the fixes)", "rocm_source: amd", "the backend vulkan"],
        )
    if rocm_source == "fedora" and release.gcc >= 16 and _pair(version) == (7, 1):
        draft.warnings.append(
            "HIP with libstdc++ 16 needs ROCm packages of 7.1.1-4 (2026-10-24) or newer: update the host first"
        )
    if rocwmma or rocwmma_targets:
        brought = _rocwmma.brought_by(version)
        # A builder may serve hosts that want it beside hosts on whose GPUs it would be wrong.
        wanting = gfx_targets(rocwmma_targets) or names
        problem = next((why for why in (_rocwmma.problem(name, brought) for name in wanting) if why), "")
        if not problem and rocm_source == "fedora" and not release.rocwmma:
            problem = f"Fedora {number} has no rocwmma-devel"
        if problem:
            return _refused(
                plan,
                f"rocWMMA cannot be used: {problem}",
                ["llama_build_rocwmma: false, which is the default, for the hosts with that GPU"],
            )
        packages.append("rocwmma-devel")
    if not names:
        draft.warnings.append(
            "no GPU targets were given: ROCm has no code that runs on every GPU, so the build must name them, for "
            "example gfx1151 (gpu_info and rocminfo print them)"
        )
    plan["packages"]["backend"] = packages
    plan["packages"]["runtime"] = list(ROCM_RUN_PACKAGES if rocm_source == "fedora" else AMD_ROCM_RUN_PACKAGES)
    plan["rocm_source"] = rocm_source
    plan["architectures"] = names
    plan["host_compiler"] = clang
    plan["environment"] = {"ROCM_PATH": root, "HIP_PATH": root, "HIPCXX": clang, "HIP_PLATFORM": "amd"}
    plan["cmake_options"] = {
        "GGML_HIP": "ON",
        **({"GPU_TARGETS": ";".join(names)} if names else {}),
        "CMAKE_HIP_COMPILER": clang,
        "CMAKE_HIP_PLATFORM": "amd",
    }
    return plan


def _plan_conda(
    plan: dict[str, Any],
    draft: _Draft,
    backend: str,
    machine: str,
    cuda_version: str,
    targets: Sequence[Any],
    driver_version: str | None,
    prefix: str,
    channel: str,
) -> dict[str, Any]:
    if backend == "rocm":
        return _refused(
            plan,
            "conda-forge has no ROCm toolchain that these builds were made with",
            ["the method packages", "the backend vulkan with the method conda"],
        )
    if _build_plan.is_hidden(prefix):
        return _refused(
            plan,
            f"what is built needs the libraries of {prefix} when it runs, and the service sees nothing below "
            f"{', '.join(_build_plan.HIDDEN)}",
            ["toolchain_conda_root below /opt, /srv or /var/lib"],
        )
    specs = list(CONDA_BASE)
    triplet = f"{machine}-conda-linux-gnu"
    plan["conda"] = {
        "prefix": prefix,
        "channel": channel,
        "platform": CONDA_PLATFORMS[machine],
        "specs": specs,
        # What every release of the table has, at the least.
        "solve_environment": _conda_lock.solve_environment(
            machine, _dotted(min(known.glibc for known in RELEASES.values())), ""
        ),
        "micromamba": {
            "url": f"{MICROMAMBA_URL}{CONDA_PLATFORMS[machine]}",
            "sha256": MICROMAMBA_SHA256[CONDA_PLATFORMS[machine]],
        },
    }
    plan["run_path"] = [f"{prefix}/lib"]
    plan["environment"] = {"PATH": f"{prefix}/bin:/usr/bin:/usr/sbin", "CONDA_PREFIX": prefix}
    options = {
        "CMAKE_C_COMPILER": f"{prefix}/bin/{triplet}-gcc",
        "CMAKE_CXX_COMPILER": f"{prefix}/bin/{triplet}-g++",
        "CMAKE_PREFIX_PATH": prefix,
    }
    plan["cmake_options"] = options
    plan["host_compiler"] = options["CMAKE_CXX_COMPILER"]
    draft.warnings.append(
        f"what is built needs the libraries of {prefix} when it runs: the folder must stay, readable by the service"
    )
    if backend == "vulkan":
        specs += CONDA_VULKAN
        options["GGML_VULKAN"] = "ON"
    if backend != "cuda":
        return plan

    capabilities = cuda_architectures(targets)
    candidates = CONDA_CUDA_AUTO if cuda_version == "auto" else (_dotted(_pair(cuda_version)),)
    reasons = []
    for version in candidates:
        if version not in CUDAS:
            return _refused(plan, f"CUDA {version} is not in the table, which knows {', '.join(CUDAS)}", [])
        problem = _target_problem(version, capabilities) or driver_problem(version, driver_version)
        if not problem:
            break
        reasons.append(problem)
    else:
        fits = [
            f"cuda_version: {known}"
            for known in CUDAS
            if not _target_problem(known, capabilities) and not driver_problem(known, driver_version)
        ]
        return _refused(plan, "; ".join(reasons), fits[-1:] or ["hosts of one kind in one build, and a newer driver"])
    plan["version"] = version
    plan["driver_minimum"] = CUDAS[version].drivers
    plan["conda"]["solve_environment"]["CONDA_OVERRIDE_CUDA"] = version
    draft.because("conda-forge feedstocks cuda-version and cuda-nvcc (cuda-nvcc pins its own range of GCC)")
    draft.because(_GPUS_SOURCE)
    draft.because(_DRIVERS_SOURCE)
    specs.append(f"cuda-version={version}")
    specs += [*CONDA_CUDA, *CONDA_CUDA_OF.get(machine, ())]
    options.update({"GGML_CUDA": "ON", "CMAKE_CUDA_COMPILER": f"{prefix}/bin/nvcc", "CUDAToolkit_ROOT": prefix})
    environment = plan["environment"]
    _finish_cuda(plan, draft, capabilities, version)
    plan["environment"] = {**environment, **plan["environment"]}
    return plan


def _plan_one(
    host: Any,
    backend: str,
    method: str = "packages",
    machine: str | None = None,
    cuda_version: str = "auto",
    rocm_version: str = "auto",
    rocm_source: str = "fedora",
    gpu_targets: Sequence[Any] = (),
    driver_version: str | None = None,
    header_patch: bool = False,
    nvidia_driver: bool = False,
    rpmfusion_driver: bool = False,
    cuda_gcc_copr: bool = True,
    cuda_available: Sequence[str] | None = None,
    cuda_repository: Mapping[str, Any] | None = None,
    rocm_repository: Mapping[str, Any] | None = None,
    copr_repository: Mapping[str, Any] | None = None,
    rocwmma: bool = False,
    rocwmma_targets: Sequence[Any] = (),
    leftover_rocm: bool = False,
    conda_prefix: str = CONDA_PREFIX,
    conda_channel: str = _conda_lock.DEFAULT_CHANNEL,
) -> dict[str, Any]:
    """Plan for one backend."""
    number, release = release_of(host)
    _one_of("method", method, METHODS)
    _one_of("rocm_source", rocm_source, ROCM_SOURCES)
    machine = machine_of(host, machine)
    cuda_version, rocm_version = str(cuda_version), str(rocm_version)
    if not conda_prefix.startswith("/"):
        raise ValueError(f"conda_prefix is an absolute path, got {conda_prefix!r}")

    draft = _Draft(warnings=list(release.remarks))
    draft.because(release.source)
    plan = _empty_plan(number, release, backend, method, draft)
    if method == "conda":
        channel = _conda_lock.check_channel(str(conda_channel))
        return _plan_conda(
            plan, draft, backend, machine, cuda_version, gpu_targets, driver_version, conda_prefix, channel
        )

    plan["packages"]["base"] = list(BASE_PACKAGES)
    if backend == "cuda":
        return _plan_cuda(
            plan,
            draft,
            number,
            release,
            machine,
            cuda_version,
            gpu_targets,
            driver_version,
            header_patch,
            nvidia_driver,
            rpmfusion_driver or rpmfusion_driver_installed(host),
            cuda_gcc_copr,
            cuda_available or None,
            cuda_repository or None,
            copr_repository or None,
        )
    if backend == "rocm":
        return _plan_rocm(
            plan,
            draft,
            number,
            release,
            machine,
            rocm_version,
            rocm_source,
            gpu_targets,
            rocwmma,
            rocwmma_targets,
            leftover_rocm,
            rocm_repository or None,
            other_rocm_refusal(host, rocm_source),
        )
    plan["host_compiler"] = "/usr/bin/g++"
    if backend == "vulkan":
        draft.because("the fork's ggml/src/ggml-vulkan/CMakeLists.txt; kyuz0 Dockerfile.vulkan-radv (Fedora 43)")
        plan["packages"]["backend"] = [*VULKAN_PACKAGES, *VULKAN_RUN_PACKAGES, *VULKAN_CHECK_PACKAGES]
        plan["packages"]["runtime"] = list(VULKAN_RUN_PACKAGES)
        plan["cmake_options"] = {"GGML_VULKAN": "ON"}
    return plan


def _is_gfx(target: Any) -> bool:
    return str(target).lower().startswith("gfx")


# What a build with one backend alone is made with; the rest of a plan is of the host.
_OF_A_BACKEND = (
    "version",
    "architectures",
    "host_compiler",
    "environment",
    "cmake_options",
    "run_path",
    "driver_minimum",
)


def toolchain_plan(
    host: Any, backend: str | Sequence[str] = "cpu", gpu_targets: Sequence[Any] = (), **options: Any
) -> dict[str, Any]:
    """Return how a host builds for one backend or several, or a plan with `supported: false`, why and what would work.

    With several, what is to be installed is for all of them, and `backends` says what a build takes for each: a build
    for one of them must not see the options of another.
    """
    release_of(host)
    if isinstance(gpu_targets, (str, bytes)) or not isinstance(gpu_targets, Sequence):
        raise ValueError(f"gpu_targets is a list, got {type(gpu_targets).__name__}: {gpu_targets!r}")
    asked = [backend] if isinstance(backend, str) else list(backend)
    if not asked:
        raise ValueError(f"backend names no backend: at least one of {', '.join(BACKENDS)}")
    for name in asked:
        _one_of("backend", name, BACKENDS)
    # A build for the processor is always possible, and each backend stands on it.
    plans = {}
    for name in [known for known in BACKENDS if known == "cpu" or known in asked]:
        targets = list(gpu_targets)
        if len(set(asked)) > 1:
            targets = [target for target in targets if _is_gfx(target) == (name == "rocm")]
        plans[name] = _plan_one(host, name, gpu_targets=targets, **options)
    return _merged(plans)


def _merged(plans: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Make one plan of several; where they say one thing each, that of the last, the fastest backend, counts."""
    merged = dict(list(plans.values())[-1])
    merged["backends"] = {
        name: {key: plan[key] for key in (*_OF_A_BACKEND, *(["rocm_source"] if "rocm_source" in plan else []))}
        for name, plan in plans.items()
    }
    merged.pop("rocm_source", None)

    def all_of(*path: str) -> list[Any]:
        """Return what stands at that place in any of the plans, each thing once."""
        found: list[Any] = []
        for plan in plans.values():
            place: Any = plan
            for key in path:
                place = place.get(key, [])
            found += [item for item in place if item not in found]
        return found

    for key in ("architectures", "repositories", "run_path", "warnings", "sources"):
        merged[key] = all_of(key)
    merged["packages"] = {kind: all_of("packages", kind) for kind in merged["packages"]}
    for key in ("environment", "cmake_options"):
        merged[key] = {name: value for plan in plans.values() for name, value in plan[key].items()}
    if merged["conda"]:
        conda = {**merged["conda"], "specs": all_of("conda", "specs")}
        conda["lock_name"] = _conda_lock.lock_name(conda["platform"], plans, merged["version"])
        conda["solve_arguments"] = _conda_lock.solve_arguments(conda)
        merged["conda"] = conda
    for name, plan in plans.items():
        if not plan["supported"]:
            reason = plan["reason"] if len(plans) < 3 else f"for {name}, {plan['reason']}"
            return _refused(merged, reason, plan["would_work"])
    return merged


_STATES = {
    "packages": "yes",
    "elsewhere": "other repository",
    "patch": "header patch",
    "no compiler": "no",
}


def matrix() -> str:
    """Return the tables as Markdown; docs/toolchain_matrix.md is this text."""
    lines = [
        "# Toolchain matrix",
        "",
        "Made from the tables in `plugins/module_utils/_toolchain.py`; do not edit. How the choice is made, and what",
        "to do where a cell says no, is in [toolchains.md](toolchains.md).",
        "",
        "## CUDA on each Fedora release",
        "",
        "- **yes**: NVIDIA's repository for that release has it, and the named compiler of the release builds it.",
        "- **other repository**: the compiler builds it, but NVIDIA's repository for that release does not have it.",
        "- **header patch**: the compiler builds it once CUDA's own header is patched (`toolchain_cuda_header_patch`),",
        "  because its prototypes contradict those of the C library. It needs a repository that has that version.",
        "- **no**: no packaged compiler is old enough; the method conda or a container is.",
        "",
    ]
    header = ["CUDA", "highest GCC", "driver"]
    header += [f"Fedora {number} (GCC {row.gcc}, glibc {_dotted(row.glibc)})" for number, row in RELEASES.items()]
    lines += _table(header, [_cuda_row(cuda) for cuda in CUDAS])
    lines += ["", "Sources:", ""]
    lines += [f"- {row.cuda.source}" for row in RELEASES.values() if row.cuda is not None]
    lines += [
        "- Fedora 45: NVIDIA's repository exists, what it holds and its key were not known on 2026-11-24",
        "- highest GCC: `crt/host_config.h` of NVIDIA's nvcc of each version",
        f"- header patch: {_CONFLICT_SOURCE}",
        f"- driver: {_DRIVERS_SOURCE}",
        "",
        "## Each Fedora release",
        "",
    ]
    lines += _table(
        ["Fedora", "GCC", "glibc", "older compilers", "ROCm", "rocWMMA", "key of NVIDIA's repository"],
        [
            [
                str(number),
                row.gcc_version,
                _dotted(row.glibc),
                ", ".join(f"gcc{major}-c++" for major in row.compat),
                row.rocm,
                "yes" if row.rocwmma else "no",
                f"{row.cuda.key} `{row.cuda.fingerprint or 'fingerprint not published'}`" if row.cuda else "not known",
            ]
            for number, row in RELEASES.items()
        ],
    )
    lines += ["", f"Source: {_PFO}", "", "## NVIDIA GPUs", ""]
    lines += _table(
        ["compute capability", "GPUs", "CMAKE_CUDA_ARCHITECTURES", "first CUDA", "last CUDA"],
        [
            [
                capability,
                gpu.names,
                gpu.architecture,
                _dotted(gpu.first_cuda),
                _dotted(gpu.last_cuda) if gpu.last_cuda else "",
            ]
            for capability, gpu in GPUS.items()
        ],
    )
    lines += ["", f"Source: {_GPUS_SOURCE}", "", "## AMD GPUs", ""]
    lines += _table(["gfx name", "GPUs"], [[name, gpus] for name, gpus in GFX.items()])
    lines += ["", f"Source: {_GFX_SOURCE}", ""]
    return "\n".join(lines)


def _cuda_row(cuda: str) -> list[str]:
    cells = [cuda, str(CUDAS[cuda].max_gcc), f">= {CUDAS[cuda].drivers}"]
    for release in RELEASES.values():
        verdict = cuda_verdict(release, cuda)
        text = _STATES[verdict["state"]]
        if verdict["compiler"] is not None:
            text += f", g++-{verdict['compiler']}"
            if verdict["stock"]:
                text += " or stock"
        if verdict["state"] == "patch":
            text += f": {', '.join(verdict['functions'])}"
        cells.append(text)
    return cells


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'|'.join('---' for _cell in header)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


if __name__ == "__main__":
    sys.stdout.write(matrix())
