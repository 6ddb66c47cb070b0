# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an installed llama-server says of itself: version and devices.

Private to the collection: it may change at any time. Standard library only.
"""

from __future__ import annotations

import re
from typing import Any

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
