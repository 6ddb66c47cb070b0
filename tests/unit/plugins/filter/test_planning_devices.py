# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.filter.planning_devices import FilterModule

CAPTURES = Path(__file__).parents[3] / "data" / "hardware"
GIB = 1024**3
planning_devices = FilterModule().filters()["planning_devices"]


def machine(name):
    return yaml.safe_load((CAPTURES / f"{name}.yml").read_text(encoding="utf-8"))["expected"]


def devices(name, *args, **kwargs):
    found = planning_devices(machine(name), *args, **kwargs)
    return [(device["name"], device["backend"], device["total_bytes"], device["free_bytes"]) for device in found]


RAM_HALO = 127098456 * 1024
SPARE_HALO = RAM_HALO - -(-RAM_HALO // 10)  # the reserve of 10 % is more than 8 GiB
RAM_SPARK = 127600748 * 1024
SPARE_SPARK = RAM_SPARK - -(-RAM_SPARK // 10)


@pytest.mark.parametrize(
    ("name", "backend", "expected"),
    [
        ("rtx_4090", "auto", [("CUDA0", "cuda", 24564 << 20, 1254 << 20)]),
        ("rtx_4090", "vulkan", [("Vulkan0", "vulkan", 24564 << 20, 1254 << 20)]),
        ("rtx_4090", ["cpu", "cuda", "vulkan"], [("CUDA0", "cuda", 24564 << 20, 1254 << 20)]),
        (
            "rtx_3090_pair",
            ["cuda"],
            [("CUDA0", "cuda", 24 * GIB, 24135 << 20), ("CUDA1", "cuda", 24 * GIB, 24143 << 20)],
        ),
        ("rx_7900_xtx", "auto", [("ROCm0", "rocm", 24560 << 20, (24560 << 20) - 27688960)]),
        # MemAvailable of the idle machine is more than the RAM less the reserve.
        ("dgx_spark_gb10", "auto", [("CUDA0", "cuda", RAM_SPARK, SPARE_SPARK)]),
        # The GTT limit of 112 GiB is above the RAM less the reserve: what is free stays below it.
        ("strix_halo_128", "rocm", [("ROCm0", "rocm", 112 * GIB, SPARE_HALO)]),
        ("strix_halo_128", "vulkan", [("Vulkan0", "vulkan", 114 * GIB, 2 * GIB - 161820672 + SPARE_HALO)]),
        # amdgpu.gttsize promises 48 GiB, and ttm.pages_limit gives 46.875 of them.
        ("strix_halo_64", "rocm", [("ROCm0", "rocm", 48 * GIB, (48000 << 20) - 19529728)]),
        # The carve-out of 96 GiB is larger than the GTT: ROCm sees the carve-out alone, Vulkan both.
        ("strix_halo_128_carveout", "rocm", [("ROCm0", "rocm", 96 * GIB, 96 * GIB - 21563965440)]),
        (
            "strix_halo_128_carveout",
            "vulkan",
            [("Vulkan0", "vulkan", 96 * GIB + 16363954176, 96 * GIB - 21563965440 + 16363954176 - 33554432)],
        ),
        ("no_gpu", "auto", []),
        ("no_gpu", "cpu", []),
        ("vm_virtio", "auto", []),
        ("strix_halo_128", "cpu", []),
    ],
)
def test_devices(name, backend, expected):
    assert devices(name, backend) == expected


def test_free_is_no_more_than_available_on_shared_memory():
    info = machine("strix_halo_128")
    info["memory"]["ram_available_bytes"] = 20 * GIB
    (device,) = planning_devices(info, "rocm")
    assert device["free_bytes"] == 20 * GIB
    assert device["total_bytes"] == 112 * GIB


def test_the_reserve_can_be_set():
    assert devices("strix_halo_128", "rocm", reserve_bytes=0) == [
        ("ROCm0", "rocm", 112 * GIB, min(112 * GIB - 25169920, 122716160 * 1024))
    ]
    assert devices("strix_halo_128", "rocm", reserve_bytes=64 * GIB)[0][3] == RAM_HALO - 64 * GIB


def test_two_makers_and_an_integrated_gpu():
    """A card of each maker beside an APU: one build with both backends uses each card once, through the faster one."""
    info = machine("strix_halo_128")
    apu = info["gpus"][0]
    nvidia = machine("rtx_4090")["gpus"][0]
    info["gpus"] = [nvidia, apu]
    both = planning_devices(info, ["cuda", "rocm", "vulkan"])
    assert [device["name"] for device in both] == ["CUDA0", "ROCm0"]
    # Under Vulkan the APU is listed last, though its address is lower, and is not used beside the card.
    apu["pci_address"] = "0000:00:08.0"
    assert [device["name"] for device in planning_devices(info, "vulkan")] == ["Vulkan0"]
    assert planning_devices(info, "vulkan")[0]["total_bytes"] == 24564 << 20
    # The card is used through CUDA, and the APU, Vulkan's second device, is not used beside it.
    assert [device["name"] for device in planning_devices(info, ["cuda", "vulkan"])] == ["CUDA0"]


def test_the_argument_is_not_changed():
    info = machine("rtx_3090_pair")
    info["gpus"].reverse()
    before = copy.deepcopy(info)
    assert [device["free_bytes"] >> 20 for device in planning_devices(info)] == [24135, 24143]
    assert info == before


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("rtx_4090", {"backend": "rocm"}, "no GPU of the host can be used by the backend rocm; GPUs there are: NVIDIA"),
        ("no_gpu", {"backend": ["cpu", "cuda"]}, "backend cuda; GPUs there are: none"),
        ("rtx_4090", {"backend": "metal"}, "'metal' is not a backend: it must be one of cpu, cuda, rocm, vulkan"),
        ("rtx_4090", {"backend": 3}, "must be a name or a list of names, got 3"),
        ("strix_halo_128", {"backend": "rocm", "reserve_bytes": "8 GiB"}, "must be a whole number, got '8 GiB'"),
        ("strix_halo_128", {"backend": "rocm", "reserve_bytes": True}, "must be a whole number, got True"),
        ("strix_halo_128", {"backend": "rocm", "reserve_bytes": -1}, "must be at least 0"),
        ("strix_halo_128", {"backend": "rocm", "reserve_bytes": 1 << 40}, "less than the host's RAM"),
    ],
)
def test_refusals(name, arguments, words):
    with pytest.raises(AnsibleFilterError, match=words.replace("(", r"\(")):
        planning_devices(machine(name), **arguments)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "needs the result of gpu_info, a dictionary, and got list"),
        ({}, "with its gpus"),
        ({"gpus": "x", "memory": {}}, "with its gpus"),
        ({"gpus": [{}], "memory": {}}, "backends"),
    ],
)
def test_what_is_no_result_of_gpu_info(value, words):
    with pytest.raises(AnsibleFilterError, match=words):
        planning_devices(value)


def test_unknown_memory_is_refused():
    info = machine("rtx_4090")
    info["gpus"][0]["vram_used_bytes"] = None
    with pytest.raises(AnsibleFilterError, match="vram_used_bytes of NVIDIA GeForce RTX 4090 is not known"):
        planning_devices(info)
