# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an installed llama-server says of itself: version and devices.

Private to the collection: it may change at any time. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import _hardware

GPU_BACKENDS = ("cuda", "rocm", "vulkan")

# How the devices of a backend are named by `--list-devices`.
DEVICE_PREFIX = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}

# Vulkan and CPU rasterisers that present themselves as devices.
_SOFTWARE = re.compile(r"llvmpipe|lavapipe|swiftshader|softpipe", re.IGNORECASE)


def parse_version(text: str) -> dict[str, Any]:
    """Read `llama-server --version`, in the fork's form and in that of newer upstream builds.

    `version: 9079 (69d8e4be4)` or `version: 0.6.0-dev (build 11434, commit b0a2feb64)`.
    """
    newer = re.search(r"^version: (\S+) \(build (\d+), commit ([^)]+)\)", text, re.MULTILINE)
    if newer is not None:
        return {"version": newer.group(1), "number": int(newer.group(2)), "commit": newer.group(3)}
    older = re.search(r"^version: (\d+) \(([^)]+)\)", text, re.MULTILINE)
    if older is not None:
        return {"version": older.group(1), "number": int(older.group(1)), "commit": older.group(2)}
    raise ValueError(f"llama-server --version did not say its version: {text.strip()[-300:]!r}")


def parse_devices(text: str) -> list[dict[str, Any]]:
    """Return the devices that `llama-server --list-devices` names."""
    line = re.compile(r"^\s+([A-Za-z]+\d+): (.+?) \((\d+) MiB, (\d+) MiB free\)\s*$", re.MULTILINE)
    return [
        {
            "name": match.group(1),
            "description": match.group(2),
            "total_mib": int(match.group(3)),
            "free_mib": int(match.group(4)),
            "software": _SOFTWARE.search(match.group(2)) is not None,
        }
        for match in line.finditer(text)
    ]


def device_refusals(backends: list[str], devices: list[dict[str, Any]], allow_software: bool) -> list[str]:
    """Return why a release would not serve on its GPUs; an empty list where it would."""
    refused = []
    for backend in backends:
        if backend not in GPU_BACKENDS:
            continue
        prefix = DEVICE_PREFIX[backend]
        own = [device for device in devices if device["name"].rstrip("0123456789") == prefix]
        usable = [device for device in own if allow_software or not device["software"]]
        if own and not usable:
            refused.append(
                f"the {backend} backend sees only {own[0]['description']}, which computes on the processor: "
                "install the driver of the GPU and give this host access to it"
            )
        elif not own:
            listed = ", ".join(device["name"] for device in devices) or "none at all"
            refused.append(
                f"the {backend} backend names no {prefix} device (devices: {listed}), so llama-server would compute "
                "on the processor: install the GPU's driver and see that its device nodes are there"
            )
    return refused


# A discrete GPU of which less than this part is named is another one: drivers keep a few hundred MiB of it at most.
SAME_GPU = 0.75


def compare_devices(
    backends: list[str], devices: list[dict[str, Any]], hardware: Mapping[str, Any], narrowed: bool
) -> tuple[list[str], list[str]]:
    """Compare what llama-server names with the GPUs that gpu_info found; return refusals and warnings.

    narrowed: a variable of the environment, such as CUDA_VISIBLE_DEVICES, lets the program see a part of the GPUs.
    """
    refused: list[str] = []
    warned: list[str] = []
    for backend in backends:
        own = {
            device["name"]: device for device in devices if device["name"].startswith(DEVICE_PREFIX.get(backend, "-"))
        }
        own = {name: device for name, device in own.items() if not device["software"]}
        if not own:
            continue
        listed = ", ".join(
            f"{name} ({device['description']}, {device['total_mib']} MiB)" for name, device in own.items()
        )
        gpus = [gpu for gpu in hardware["gpus"] if backend in gpu["backends"]]
        try:
            wanted = _hardware.planning_devices(hardware, [backend])
        except ValueError as exc:
            warned.append(f"llama-server names {listed}, which cannot be compared with the host's hardware: {exc}")
            continue
        # What an integrated GPU may map depends on the driver's version; a card has its own memory.
        card = not all(gpu["integrated"] for gpu in gpus)
        there = ", ".join(f"{device['name']} ({device['total_bytes'] >> 20} MiB)" for device in wanted)
        names = ", ".join(str(gpu["name"]) for gpu in gpus)
        seen = [
            device["name"]
            for device in wanted
            if device["name"] in own
            and (not card or own[device["name"]]["total_mib"] >= SAME_GPU * (device["total_bytes"] >> 20))
        ]
        text = f"the {backend} backend names {listed}, and the host has {names}: {there}"
        if not seen and not narrowed:
            refused.append(
                f"{text}. That is another GPU: see that the driver of the right one is loaded and may be used"
            )
        elif len(seen) < len(wanted) and not narrowed:
            warned.append(f"{text}. Not named: {', '.join(d['name'] for d in wanted if d['name'] not in seen)}")
    return refused, warned
