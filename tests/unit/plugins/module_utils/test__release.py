# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _release

# As printed by upstream b10434 (--help, 2026-08), lines taken out.
HELP = """----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
--cpu-strict <0|1>                      use strict CPU placement (default: 0)
-n,    --predict, --n-predict N         number of tokens to predict (default: -1, -1 = infinity)
                                        (env: LLAMA_ARG_N_PREDICT)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
                                        (env: LLAMA_ARG_FLASH_ATTN)
--perf, --no-perf                       whether to enable internal libllama performance timings (default:
                                        false)
                                        (env: LLAMA_ARG_PERF)
--rope-scaling {none,linear,yarn}       RoPE frequency scaling method, defaults to linear unless specified by
                                        the model
-hf,   -hfr, --hf-repo <user>/<model>[:quant]
                                        Hugging Face model repository; quant is optional, case-insensitive,
                                        example: ggml-org/GLM-4.7-Flash-GGUF:Q4_K_M
                                        (env: LLAMA_ARG_HF_REPO)

----- example-specific params -----

--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
                                        (env: LLAMA_ARG_DRAFT_MAX)
"""


def test_parse_help():
    found = _release.parse_help(HELP)
    assert [(option["names"], option["value"], option["env"], option["removed"]) for option in found] == [
        (["-h", "--help", "--usage"], "", [], False),
        (["--version"], "", [], False),
        (["-t", "--threads"], "N", ["LLAMA_ARG_THREADS"], False),
        (["--cpu-strict"], "<0|1>", [], False),
        (["-n", "--predict", "--n-predict"], "N", ["LLAMA_ARG_N_PREDICT"], False),
        (["-fa", "--flash-attn"], "[on|off|auto]", ["LLAMA_ARG_FLASH_ATTN"], False),
        (["--perf", "--no-perf"], "", ["LLAMA_ARG_PERF"], False),
        (["--rope-scaling"], "{none,linear,yarn}", [], False),
        (["-hf", "-hfr", "--hf-repo"], "<user>/<model>[:quant]", ["LLAMA_ARG_HF_REPO"], False),
        (["--draft", "--draft-n", "--draft-max"], "N", ["LLAMA_ARG_DRAFT_MAX"], True),
    ]  # fmt: skip
    assert _release.parse_help("no options here\n") == []


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
