# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _release


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 9079 (69d8e4be4)\nbuilt with GNU", {"version": "9079", "number": 9079, "commit": "69d8e4be4"}),
        (
            "version: 0.1.0-dev (build 1, commit 7e4c0a9)\nbuilt with GNU 11.4.0 for Linux x86_64\n",
            {"version": "0.1.0-dev", "number": 1, "commit": "7e4c0a9"},
        ),
        (
            "warning: x\nversion: 0.7.0 (build 11669, commit Debian)",
            {"version": "0.7.0", "number": 11669, "commit": "Debian"},
        ),
    ],
)
def test_parse_version(text, expected):
    assert _release.parse_version(text) == expected


def test_no_version_is_refused():
    with pytest.raises(ValueError, match=r"did not say its version: 'Illegal instruction'"):
        _release.parse_version("Illegal instruction\n")


NONE = "Available devices:\n  (none)\n"
LLVMPIPE = "Available devices:\n  Vulkan0: llvmpipe (LLVM 21.1.0, 256 bits) (24037 MiB, 22000 MiB free)\n"
RADEON = "Available devices:\n  Vulkan0: AMD Radeon 8060S Graphics (RADV GFX1151) (98304 MiB, 97000 MiB free)\n"
CUDA = """ggml_cuda_init: found 2 CUDA devices
Available devices:
  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23600 MiB free)
  CUDA1: NVIDIA GeForce RTX 4090 (24080 MiB, 23600 MiB free)
"""
ROCM = "Available devices:\n  ROCm0: AMD Radeon Graphics (62464 MiB, 62000 MiB free)\n"


def test_parse_devices():
    assert _release.parse_devices(NONE) == []
    assert _release.parse_devices(LLVMPIPE) == [
        {
            "name": "Vulkan0",
            "description": "llvmpipe (LLVM 21.1.0, 256 bits)",
            "total_mib": 24037,
            "free_mib": 22000,
            "software": True,
        }
    ]
    assert [device["name"] for device in _release.parse_devices(CUDA)] == ["CUDA0", "CUDA1"]
    assert not _release.parse_devices(RADEON)[0]["software"]


@pytest.mark.parametrize(
    ("backends", "text", "software", "said"),
    [
        (["cpu"], NONE, False, None),
        (["cpu", "cuda"], CUDA, False, None),
        (["cpu", "cuda"], NONE, False, r"the cuda backend names no CUDA device \(devices: none at all\)"),
        (["cpu", "cuda"], RADEON, False, r"names no CUDA device \(devices: Vulkan0\)"),
        (["cpu", "rocm"], ROCM, False, None),
        (["cpu", "rocm"], CUDA, False, "the rocm backend names no ROCm device"),
        (["cpu", "vulkan"], RADEON, False, None),
        (["cpu", "vulkan"], LLVMPIPE, False, r"sees only llvmpipe .* which computes on the processor"),
        (["cpu", "vulkan"], LLVMPIPE, True, None),
        (["cpu", "vulkan"], NONE, True, "names no Vulkan device"),
        (["cpu", "cuda", "vulkan"], CUDA, False, "the vulkan backend names no Vulkan device"),
    ],
)
def test_a_gpu_build_needs_its_gpu(backends, text, software, said):
    found = _release.device_refusals(backends, _release.parse_devices(text), software)
    if said is None:
        assert found == []
    else:
        with pytest.raises(ValueError, match=said):
            raise ValueError("; ".join(found))


GIB = 1 << 30
ADA = {"name": "NVIDIA GeForce RTX 4090", "vendor": "nvidia", "pci_address": "0000:01:00.0", "integrated": False,
       "vram_total_bytes": 24564 << 20, "vram_used_bytes": 0, "gtt_total_bytes": None,
       "backends": ["cuda", "vulkan"]}  # fmt: skip
SECOND = {**ADA, "pci_address": "0000:02:00.0"}
HALO = {"name": "AMD Radeon 8060S Graphics", "vendor": "amd", "pci_address": "0000:c6:00.0", "integrated": True,
        "vram_total_bytes": GIB, "vram_used_bytes": 0, "gtt_total_bytes": 60 * GIB, "gtt_used_bytes": 0,
        "backends": ["rocm", "vulkan"]}  # fmt: skip
ONE_CUDA = "\n".join(CUDA.splitlines()[:3]) + "\n"
SMALL = "Available devices:\n  CUDA0: NVIDIA T400 4GB (3900 MiB, 3800 MiB free)\n"


def machine(*gpus):
    memory = {"ram_total_bytes": 128 * GIB, "ram_available_bytes": 120 * GIB, "ttm_pages_limit": None}
    return {"gpus": list(gpus), "memory": memory}


@pytest.mark.parametrize(
    ("text", "gpus", "narrowed", "refused", "warned"),
    [
        (CUDA, [ADA, SECOND], False, "", ""),
        (ONE_CUDA, [ADA], False, "", ""),
        (ONE_CUDA, [ADA, SECOND], False, "", "Not named: CUDA1"),
        (ONE_CUDA, [ADA, SECOND], True, "", ""),
        (SMALL, [ADA], False,
         r"CUDA0 \(NVIDIA T400 4GB, 3900 MiB\), and the host has NVIDIA GeForce RTX 4090: CUDA0", ""),
        (SMALL, [ADA], True, "", ""),
        (ONE_CUDA, [], False, "", "cannot be compared with the host's hardware"),
        (ONE_CUDA, [{**ADA, "vram_total_bytes": None}], False, "",
         "vram_total_bytes of NVIDIA GeForce RTX 4090 is not known"),
        # What an APU may map is no mark of it.
        (ROCM, [HALO], False, "", ""),
        ("Available devices:\n  ROCm0: AMD Radeon Graphics (1024 MiB, 900 MiB free)\n", [HALO], False, "", ""),
        (LLVMPIPE, [ADA], False, "", ""),
    ],
)  # fmt: skip
def test_the_devices_are_the_gpus_of_the_host(text, gpus, narrowed, refused, warned):
    devices = _release.parse_devices(text)
    backends = ["cpu", {"C": "cuda", "R": "rocm", "V": "vulkan"}[devices[0]["name"][0]]]
    found, said = _release.compare_devices(backends, devices, machine(*gpus), narrowed)
    assert (len(found), len(said)) == (bool(refused), bool(warned))
    for texts, wanted in ((found, refused), (said, warned)):
        if wanted:
            assert re.search(wanted, texts[0])
