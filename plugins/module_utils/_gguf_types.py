# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tensor types and architectures that a build of llama.cpp knows. Private to the collection.

The numbers of the types are written into GGUF files, but forks and upstream have given the same number to different
types (42 is turbo2 in the fork and q2_0 upstream), so each table belongs to one build and a new build gets its own.

Sources: ``enum ggml_type`` in ggml/include/ggml.h; block sizes from the ``static_assert`` lines of
ggml/src/ggml-common.h; architectures from ``LLM_ARCH_NAMES`` in src/llama-arch.cpp; each read at the commit or
release that the build's name carries.
"""

from __future__ import annotations

from typing import NamedTuple


class TensorType(NamedTuple):
    """One row of a build's table: C{values} elements are stored in C{size} bytes."""

    name: str
    values: int
    size: int

    def row_bytes(self, elements: int) -> int:
        return elements // self.values * self.size


class Build(NamedTuple):
    """What one build of llama.cpp can load."""

    name: str
    types: dict[int, TensorType]
    architectures: frozenset[str]


_SHARED_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
}

_TURBOQUANT_TYPES = {
    42: TensorType("TURBO2", 128, 34),
    43: TensorType("TURBO3", 128, 50),
    44: TensorType("TURBO4", 128, 68),
    45: TensorType("TQ3_1S", 32, 16),
    46: TensorType("TQ4_1S", 32, 20),
}

_B11434_TYPES = {
    42: TensorType("Q2_0", 64, 18),
}

# "clip" and "(unknown)" stand in LLM_ARCH_NAMES too, but llama-server does not load a model of either.
_TURBOQUANT_NAMES = """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bert bitnet bloom chameleon chatglm
    codeshell cogvlm cohere2 command-r dbrx deci deepseek deepseek2 deepseek2-ocr dots1 dream ernie4_5
    ernie4_5-moe eurobert exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma-embedding gemma2 gemma3 gemma3n
    gemma4 glm-dsa glm4 glm4moe gpt-oss gpt2 gptj gptneox granite granitehybrid granitemoe grok grovemoe
    hunyuan-dense hunyuan-moe internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-linear lfm2 lfm2moe
    llada llada-moe llama llama-embed llama4 maincoder mamba mamba2 mimo2 minicpm minicpm3 minimax-m2 mistral3
    mistral4 modern-bert mpt nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe olmo olmo2
    olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe refact rnd1 rwkv6 rwkv6qwen2 rwkv7
    seed_oss smallthinker smollm3 stablelm starcoder starcoder2 step35 t5 t5encoder wavtokenizer-dec xverse
"""
_TURBOQUANT_ARCHITECTURES = frozenset(_TURBOQUANT_NAMES.split())

_B11434_NAMES = """
    bailingmoe3 clef cohere2moe deepseek32 deepseek4 dflash dots3note eagle3 gemma4-assistant glm5-next
    granite_swa graniteswitch hrm_text hunyuan_vl hy_v3 hy_v4 kimi-k3 laguna maple mellum minimax-01 minimax-m3
    muse-glimmer nanbeige pockettts qwen3tts qwen4exp spark2_5 talkie
"""
_B11434_ARCHITECTURES = _TURBOQUANT_ARCHITECTURES | frozenset(_B11434_NAMES.split())

DEFAULT_BUILD = "turboquant-69d8e4be"

BUILDS = {
    build.name: build
    for build in (
        Build(DEFAULT_BUILD, {**_SHARED_TYPES, **_TURBOQUANT_TYPES}, _TURBOQUANT_ARCHITECTURES),
        Build("upstream-b11434", {**_SHARED_TYPES, **_B11434_TYPES}, _B11434_ARCHITECTURES),
    )
}


def build_of(name: str) -> Build:
    """The tables of a build; raises ValueError that lists the known ones."""
    if name not in BUILDS:
        raise ValueError(f"build {name!r} is not known; known are {', '.join(sorted(BUILDS))}")
    return BUILDS[name]
