# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an installed llama-server says of itself: version, options, devices.

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

_OPTION = re.compile(r"^(-{1,2}[A-Za-z0-9][A-Za-z0-9_.-]*)$")


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


def parse_help(text: str) -> list[dict[str, Any]]:
    """Return the options that `llama-server --help` lists, each with its spellings, value and variables.

    An option begins in the first column. Its spellings are separated by commas and followed by the name
    of a value where it takes one; the description begins in a later column or on the next line.
    """
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        if line.startswith("-") and not line.startswith("---"):
            # Two spaces end the column of spellings where the description stands on the same line.
            head = re.split(r"\s{2,}", line.rstrip(), maxsplit=0)
            names: list[str] = []
            value = ""
            for piece in head:
                if names and not piece.startswith("-"):
                    break
                piece_names, piece_value = _spellings(piece)
                names.extend(piece_names)
                value = value or piece_value
            if names:
                found.append({"names": names, "value": value, "env": [], "removed": False})
        if found:
            found[-1]["env"].extend(re.findall(r"\(env: ([A-Z0-9_]+)\)", line))
            if "argument has been removed" in line:
                found[-1]["removed"] = True
    return found


def _spellings(piece: str) -> tuple[list[str], str]:
    names: list[str] = []
    rest = piece.strip()
    while rest:
        word, _space, after = rest.partition(" ")
        bare = word.rstrip(",")
        if _OPTION.match(bare) is None:
            return names, rest
        names.append(bare)
        rest = after.strip()
        if not word.endswith(","):
            return names, rest
    return names, ""


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
