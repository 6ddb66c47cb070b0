# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _build_kind, _build_plan

SETTINGS = {
    "source": {"kind": "git", "url": "https://example.org/x", "commit": "0" * 40},
    "backends": ["cuda"],
    "targets": ["llama-server"],
    "cpu_features": ["avx2"],
    "arm_arch": "armv8.2-a",
    "cuda_architectures": [],
    "gpu_targets": [],
    "cache_type_pairs": [],
    "rocwmma": False,
    "tls": "auto",
    "cmake_options": {},
    "allow_known_bad": False,
}
ADA = {"name": "RTX 4090", "compute_capability": "8.9", "gfx_target": None}
BLACKWELL = {"name": "RTX 5090", "compute_capability": "12.0", "gfx_target": None}
HALO = {"name": "Radeon 8060S", "compute_capability": None, "gfx_target": "gfx1151"}


def host(*gpus, **more):
    return {
        "architecture": "x86_64",
        "distribution": "Fedora",
        "release": "44",
        "builder": "",
        "method": "packages",
        "gpus": list(gpus),
        **more,
    }


def kind(settings=SETTINGS, gpus=(ADA,), **more):
    return _build_kind.build_kind(settings, host(*gpus, **more))


def test_ten_hosts_of_two_kinds():
    fleet = {f"ada{number}": kind(gpus=[ADA] * (1 + number % 2))["kind"] for number in range(5)}
    fleet.update({f"blackwell{number}": kind(gpus=[BLACKWELL])["kind"] for number in range(5)})
    assert len({fleet[name] for name in fleet if name.startswith("ada")}) == 1
    assert len(set(fleet.values())) == 2


def test_the_gpus_decide_the_architectures():
    assert kind()["cuda_architectures"] == ["89"]
    assert kind(gpus=[BLACKWELL, ADA])["cuda_architectures"] == ["89", "120"]
    rocm = {**SETTINGS, "backends": ["rocm"]}
    found = kind(rocm, [HALO])
    assert (found["gpu_targets"], found["cuda_architectures"]) == (["gfx1151"], [])
    # Said in the inventory, it counts for hosts whose GPU is not to be asked yet.
    assert kind({**SETTINGS, "cuda_architectures": ["90"]}, [])["cuda_architectures"] == ["90"]


@pytest.mark.parametrize(
    ("settings", "gpus", "said"),
    [
        (
            SETTINGS,
            [],
            r"no GPU of this host says its compute_capability \(GPUs: none\).*llama_build_cuda_architectures",
        ),
        (SETTINGS, [HALO], r"\(GPUs: Radeon 8060S\)"),
        ({**SETTINGS, "backends": ["rocm"]}, [ADA], "says its gfx_target .*llama_build_gpu_targets"),
        ({**SETTINGS, "backends": ["metal"]}, [], "backend metal is unknown"),
        ({"backends": ["cpu"]}, [], "settings lack allow_known_bad, arm_arch"),
    ],
)
def test_refusals(settings, gpus, said):
    with pytest.raises(_build_plan.BuildError, match=said):
        kind(settings, gpus)


@pytest.mark.parametrize(
    ("more", "same"),
    [
        ({"release": "43"}, False),
        ({"distribution": "Debian"}, False),
        ({"architecture": "aarch64"}, False),
        ({"builder": "builder1"}, False),
        ({"method": "conda"}, False),
        ({}, True),
    ],
)
def test_the_place_counts(more, same):
    assert (kind(**more)["kind"] == kind()["kind"]) is same


def test_with_a_builder_its_release_counts_and_not_the_hosts():
    one = kind(builder="builder1", release="43")["kind"]
    assert one == kind(builder="builder1", release="44")["kind"]
    assert one != kind(builder="builder2", release="44")["kind"]
    # It builds once for both, and the one of the other method is refused there: nobody speaks for it.
    assert one != kind(builder="builder1", release="44", method="conda")["kind"]


@pytest.mark.parametrize("name", [name for name in _build_kind.SETTINGS if name not in ("backends", "gpu_targets")])
def test_every_setting_counts(name):
    other = {
        "source": {"kind": "git", "url": "https://example.org/x", "commit": "1" * 40},
        "targets": ["llama-bench"],
        "cpu_features": ["avx2", "avx512"],
        "arm_arch": "armv9-a",
        "cuda_architectures": ["90"],
        "cache_type_pairs": ["q8_0/f16"],
        "rocwmma": True,
        "tls": "never",
        "cmake_options": {"GGML_LTO": True},
        "allow_known_bad": True,
    }
    assert kind({**SETTINGS, name: other[name]})["kind"] != kind()["kind"]


def test_rocwmma_is_of_builds_for_rocm():
    wanting = {**SETTINGS, "rocwmma": True}
    assert kind({**wanting, "backends": ["rocm"]}, [HALO])["rocwmma"] is True
    assert kind(wanting)["rocwmma"] is False
    assert kind({**SETTINGS, "backends": ["rocm"]}, [HALO])["rocwmma"] is False


def test_backends_in_any_order_are_one_kind():
    settings = {**SETTINGS, "backends": ["vulkan", "cuda"]}
    assert kind(settings)["kind"] == kind({**SETTINGS, "backends": ["cpu", "cuda", "vulkan"]})["kind"]


def test_the_instances_bring_their_attention_kernels():
    instances = [
        {"name": "a", "cache_type_k": "f16", "cache_type_v": "q8_0"},
        {"name": "b"},
        {"name": "c", "cache_type_v": "auto"},
        {"name": "d", "cache_type_v": "q5_0", "backend": "cpu"},
        {"name": "e", "cache_type_v": "q5_1", "state": "absent"},
    ]
    serving = kind(instances=instances, instance_defaults={"cache_type_k": "q8_0", "cache_type_v": "turbo4"})
    assert serving["cache_type_pairs"] == ["f16/q8_0"]
    assert serving["kind"] != kind()["kind"]
    assert serving["kind"] == kind({**SETTINGS, "cache_type_pairs": ["f16/q8_0", "q8_0/turbo4"]})["kind"]


def test_pairs_that_every_build_has_are_no_reason_for_two():
    pairs = kind(instances=[{"cache_type_k": "q8_0", "cache_type_v": "turbo4"}])
    assert (pairs["kind"], pairs["cache_type_pairs"]) == (kind()["kind"], [])
    cpu = {**SETTINGS, "backends": ["cpu"]}
    other = kind(cpu, instances=[{"cache_type_k": "q4_0", "cache_type_v": "turbo4"}])
    assert (other["kind"], other["cache_type_pairs"]) == (kind(cpu)["kind"], [])
