# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host needs to run what another host has built: the libraries of the GPU, and where they come from.

Private to the collection: may change at any time, not for use from elsewhere. Nothing looks at a host.

Which libraries follows from the build, which packages carry them from the release of the host that runs it. A library
is found by its name and its major version, so a newer minor version serves and an older one may lack a symbol. Sources:
docs.nvidia.com/deploy/cuda-compatibility for CUDA (libcudart.so.13 of any 13.x); for ROCm the names on Fedora Packages
(libamdhip64.so.6 and libhipblas.so.2 in 6.x, libamdhip64.so.7 and libhipblas.so.3 in 7.x).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import _toolchain


def runtime_plan(
    host: Any,
    built: Mapping[str, Mapping[str, Any]],
    machine: str | None = None,
    rpmfusion_driver: bool = False,
    cuda_available: Sequence[str] | None = None,
    cuda_repository: Mapping[str, Any] | None = None,
    rocm_repository: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return packages and repositories for a build, or `supported: false` with the reason and what would work.

    `built` is `backends` of a toolchain's plan, of those backends that the build has.
    """
    number = _toolchain.release_number(host)
    release = _toolchain.RELEASES.get(number)
    machine = _toolchain.machine_of(host, machine)
    unknown = sorted(set(built) - set(_toolchain.BACKENDS))
    if unknown:
        raise ValueError(f"backend is one of {', '.join(_toolchain.BACKENDS)}, got {', '.join(unknown)}")
    plan: dict[str, Any] = {
        "supported": True,
        "reason": "",
        "would_work": [],
        "packages": [],
        "repositories": [],
        "versions": {},
    }
    if "vulkan" in built:
        plan["packages"] += _toolchain.VULKAN_RUN_PACKAGES
    if "rocm" in built:
        version, source = str(built["rocm"]["version"]), str(built["rocm"].get("rocm_source", "fedora"))
        other = _toolchain.other_rocm_refusal(host, source)
        if other:
            # Of which source the libraries are the builder decides.
            reason, (removing, instead) = other
            return _refused(plan, reason, [removing, f"{instead} for the builder"])
        if source == "amd":
            plan["packages"] += _toolchain.AMD_ROCM_RUN_PACKAGES
            plan["repositories"].append(_toolchain.rocm_repository_of(version, rocm_repository or None))
            plan["versions"]["rocm"] = version
        else:
            there = release.rocm if release is not None else ""
            if not _serves(there, version):
                has = f"packages ROCm {there}" if there else "is not in the table"
                return _refused(
                    plan,
                    f"the build was made with ROCm {version}, and Fedora {number} {has}: the libraries have another "
                    "major version there, or are older",
                    ["a builder with the Fedora release of this host", "toolchain_rocm_source: amd for both"],
                )
            plan["packages"] += _toolchain.ROCM_RUN_PACKAGES
            plan["versions"]["rocm"] = there
    if "cuda" in built:
        version = str(built["cuda"]["version"])
        chosen = _cuda(version, release, machine, cuda_available or None, cuda_repository or None)
        if not chosen:
            offered = ", ".join(_offered(release, machine, cuda_available)) or "none that is known"
            major = version.partition(".")[0]
            return _refused(
                plan,
                f"the build was made with CUDA {version}, which runs with the libraries of CUDA {version} or a newer "
                f"{major}.x, and NVIDIA's repository for Fedora {number} carries {offered}",
                [
                    "a repository that has it (toolchain_cuda_repository)",
                    "toolchain_cuda_version on the builder, not newer than what this host can have",
                ],
            )
        plan["packages"] += _toolchain.cuda_run_packages(chosen)
        plan["versions"]["cuda"] = chosen
        exclude = rpmfusion_driver or _toolchain.rpmfusion_driver_installed(host)
        plan["repositories"].append(
            _toolchain.cuda_repository_of(number, release, machine, cuda_repository or None, exclude)
        )
    return plan


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _serves(there: str, wanted: str) -> bool:
    """Say whether libraries of one version serve a program that was linked with another."""
    return bool(there) and _numbers(there)[:1] == _numbers(wanted)[:1] and _numbers(there)[:2] >= _numbers(wanted)[:2]


def _offered(release: _toolchain.Release | None, machine: str, available: Sequence[str] | None) -> list[str]:
    if available:
        return [str(version) for version in available]
    if release is None or release.cuda is None:
        return []
    return list(release.cuda.versions.get(_toolchain.MACHINES[machine], ()))


def _cuda(
    wanted: str,
    release: _toolchain.Release | None,
    machine: str,
    available: Sequence[str] | None,
    repository: Mapping[str, Any] | None,
) -> str:
    """Return the CUDA whose libraries the host takes: the build's own, or the next newer one that it can have."""
    if repository is not None and available is None:
        # An operator's own repository is taken at the word: it is not ours to say what it holds.
        return wanted
    fits = [version for version in _offered(release, machine, available) if _serves(version, wanted)]
    return min(fits, key=_numbers, default="")


def _refused(plan: dict[str, Any], reason: str, would_work: list[str]) -> dict[str, Any]:
    return {**plan, "supported": False, "reason": reason, "would_work": would_work}
