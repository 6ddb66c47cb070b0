# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Group hosts by the build that they need, before anything is known of compilers.

Private to the collection: it may change at any time. Pure functions, no Ansible imports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import _build_plan

SETTINGS = (
    "source",
    "backends",
    "targets",
    "cpu_features",
    "arm_arch",
    "cuda_architectures",
    "gpu_targets",
    "cache_type_pairs",
    "rocwmma",
    "tls",
    "cmake_options",
    "allow_known_bad",
)


def build_kind(settings: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind of build that a host needs: hosts of one kind share one build.

    `host` has architecture, distribution, release, builder (the host that builds for it, or an empty string), method
    (its toolchain_method), gpus (as gpu_info returns them), and where it serves instances and instance_defaults, whose
    pairs of cache types need attention kernels. A host that builds for itself is of one kind with others of the same
    release; with a builder, the builder's release counts, and there is one builder.
    """
    missing = sorted(set(SETTINGS) - set(settings))
    if missing:
        raise _build_plan.BuildError(f"settings lack {', '.join(missing)}")
    backends = _build_plan.check_backends(list(settings["backends"]))
    architectures: list[str] = []
    targets: list[str] = []
    gpus = list(host.get("gpus") or [])
    if "cuda" in backends:
        architectures = _build_plan.check_cuda_architectures(
            list(settings["cuda_architectures"]) or _found(gpus, "compute_capability", "llama_build_cuda_architectures")
        )
    if "rocm" in backends:
        targets = _build_plan.check_gpu_targets(
            list(settings["gpu_targets"]) or _found(gpus, "gfx_target", "llama_build_gpu_targets")
        )
    builder = str(host.get("builder") or "")
    place = {"builder": builder} if builder else {"distribution": host["distribution"], "release": host["release"]}
    # The first host of a kind builds by its own method, and the others get the libraries of that method: a host whose
    # packages must not be touched would get packages.
    place["method"] = host["method"]
    decided = {name: settings[name] for name in SETTINGS}
    pairs: list[str] = []
    if {"cuda", "rocm"} & set(backends):
        named = _build_plan.pairs_of_instances(host.get("instances") or [], host.get("instance_defaults") or {})
        # Those that every build has are no reason for two.
        beyond = _build_plan.pairs_beyond_default([*settings["cache_type_pairs"], *named])
        pairs = [f"{key}/{value}" for key, value in beyond]
    decided.update(backends=backends, cuda_architectures=architectures, gpu_targets=targets, cache_type_pairs=pairs)
    return {
        "kind": _build_plan.fingerprint({"settings": decided, "architecture": host["architecture"], "place": place})[
            :12
        ],
        "backends": backends,
        "cuda_architectures": architectures,
        "gpu_targets": targets,
        "cache_type_pairs": pairs,
        "rocwmma": bool(settings["rocwmma"]) and "rocm" in backends,
        # Not of the kind: a newer driver runs the same build, an older one may ask for another CUDA.
        "nvidia_drivers": sorted(
            {str(gpu["driver_version"]) for gpu in gpus if gpu.get("driver") == "nvidia" and gpu.get("driver_version")}
        ),
    }


def _found(gpus: Sequence[Mapping[str, Any]], key: str, variable: str) -> list[str]:
    found = sorted({str(gpu[key]).replace(".", "") for gpu in gpus if gpu.get(key)})
    if not found:
        names = ", ".join(str(gpu.get("name")) for gpu in gpus) or "none"
        raise _build_plan.BuildError(
            f"no GPU of this host says its {key} (GPUs: {names}): its driver is not loaded yet, so name the GPU in "
            f"{variable}"
        )
    return found
