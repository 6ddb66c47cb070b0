# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The geometry of a model as llama.cpp reads it from a GGUF header.

This is llama_model::load_hparams (src/llama-model.cpp:660-2930 at 69d8e4be) reduced to what decides
memory: layers, heads, head sizes, which layers slide, which are recurrent, which own a cache, and the
size of the recurrent state. File and line numbers below are those of that tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# llama-arch.cpp, LLM_ARCH_NAMES of 69d8e4be.
KNOWN_ARCHITECTURES = words(
    """
    llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bert modern-bert nomic-bert
    nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert bloom stablelm qwen qwen2 qwen2moe qwen2vl qwen3
    qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe phi2 phi3 phimoe plamo plamo2 plamo3 codeshell orion
    internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4 gemma-embedding starcoder2 mamba mamba2 jamba
    falcon-h1 xverse command-r cohere2 dbrx olmo olmo2 olmoe openelm arctic deepseek deepseek2 deepseek2-ocr chatglm
    glm4 glm4moe glm-dsa bitnet t5 t5encoder jais jais2 nemotron nemotron_h nemotron_h_moe exaone exaone4 exaone-moe
    rwkv6 rwkv6qwen2 rwkv7 arwkv7 granite granitemoe granitehybrid chameleon wavtokenizer-dec plm bailingmoe
    bailingmoe2 dots1 arcee afmoe ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-dense smollm3 gpt-oss lfm2 lfm2moe dream
    smallthinker llada llada-moe seed_oss grovemoe apertus minimax-m2 cogvlm rnd1 pangu-embedded mistral3 mistral4
    paddleocr mimo2 step35 llama-embed maincoder kimi-linear
    """
)

# llama_model::create_memory returns no memory for these (llama-model.cpp:8412-8427).
NO_MEMORY = words(
    """
    bert jina-bert-v2 jina-bert-v3 nomic-bert nomic-bert-moe neo-bert eurobert wavtokenizer-dec modern-bert
    gemma-embedding dream llada llada-moe rnd1
    """
)
# llm_arch_is_recurrent and llm_arch_is_hybrid (llama-arch.cpp:831-870).
RECURRENT = frozenset(["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"])
HYBRID = words(
    """
    jamba falcon-h1 plamo2 granitehybrid lfm2 lfm2moe nemotron_h nemotron_h_moe qwen3next kimi-linear qwen35
    qwen35moe
    """
)
# llama_model_rope_type (llama-model.cpp:9178-9200): these have no positions as input.
NO_ROPE = words(
    """
    gpt2 gptj mpt refact bloom mamba mamba2 jamba jina-bert-v2 t5 t5encoder jais rwkv6 rwkv6qwen2 rwkv7 arwkv7
    wavtokenizer-dec nemotron_h nemotron_h_moe kimi-linear
    """
)
MROPE = frozenset(["qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"])
# Non-causal by their own rule (llama-model.cpp:1219-1290, 1656).
NON_CAUSAL = frozenset(["dream", "llada", "llada-moe", "rnd1", "gemma-embedding"])

# Architectures with a sliding window: (default window, period, dense layer first, window must be given).
# A window that is absent or 0 turns sliding off where the default is 0.
SLIDING: dict[str, tuple[int, int, bool]] = {
    "afmoe": (0, 4, False),
    "plamo3": (0, 8, False),
    "gemma2": (4096, 2, False),
    "gemma3": (0, 6, False),
    "gemma3n": (0, 5, False),
    "gemma-embedding": (0, 6, False),
    "modern-bert": (0, 3, True),
    "cohere2": (0, 4, False),
    "olmo2": (0, 4, False),
    "exaone-moe": (128, 4, False),
    "gpt-oss": (0, 2, False),
}
# These name every layer in sliding_window_pattern (llama-model.cpp:1624, 2841, 2895).
SLIDING_BY_ARRAY = frozenset(["gemma4", "mimo2", "step35"])
# NextN layers own no cache (n_layer_kv_from_start; llama-model.cpp:2069, 2103, 2150, 2507).
NEXTN_WITHOUT_KV = frozenset(["glm4", "glm4moe", "glm-dsa", "bailingmoe2"])
# NextN layers whose tensors are skipped when loading (llama-model.cpp:5678, 5734, 5840, 6108, 6605).
NEXTN_SKIPPED = NEXTN_WITHOUT_KV | {"exaone-moe"}
# Of those, the ones that ask for fused QKV and for the biases of Q, K and V without the skip flag.
NEXTN_QKV_LOADED = frozenset(["glm4", "glm4moe", "exaone-moe"])

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS


class ModelError(ValueError):
    """The header lacks or contradicts something that llama.cpp needs."""


class HParams:
    """Hyperparameters that decide memory. Lists have one entry for each layer."""

    __slots__ = (
        "_lists",
        "arch",
        "causal",
        "get",
        "head_k",
        "head_k_mla",
        "head_v",
        "head_v_mla",
        "is_mla",
        "kv_from_start",
        "n_ctx_train",
        "n_embd",
        "n_embd_per_layer",
        "n_embd_r",
        "n_embd_s",
        "n_expert",
        "n_expert_used",
        "n_ff",
        "n_head",
        "n_head_kv",
        "n_layer",
        "n_pos",
        "n_swa",
        "n_vocab",
        "nextn",
        "recurrent",
        "sliding",
        "swa",
    )

    def __init__(self, model: Mapping[str, Any]) -> None:
        arch = model.get("architecture") or model.get("metadata", {}).get("general.architecture")
        if not isinstance(arch, str):
            raise ModelError("the model has no general.architecture: not a header that gguf_info returned")
        self.arch: str = arch
        metadata = model.get("metadata")
        if not isinstance(metadata, Mapping):
            raise ModelError(f"model of architecture {arch}: metadata must be a dictionary, is {metadata!r:.60}")
        prefix = arch + "."

        def get(key: str, default: Any = None) -> Any:
            return metadata.get(prefix + key, default)

        self.get = get
        self._lists: list[Sequence[Any]] = [
            value
            for key, value in metadata.items()
            if isinstance(value, (list, tuple)) and isinstance(key, str) and key.startswith(prefix)
        ]
        self.n_layer = self._count("block_count")
        if not 0 < self.n_layer <= MAX_LAYERS:
            raise ModelError(f"{prefix}block_count is {self.n_layer}, must be 1 to {MAX_LAYERS} (LLAMA_MAX_LAYERS)")
        self.n_embd = self._count("embedding_length")
        self.n_ctx_train = self._count("context_length")
        self.n_expert = self._count("expert_count", 0)
        self.n_expert_used = self._count("expert_used_count", 0)
        self.n_ff = self._per_layer("feed_forward_length", [0] * self.n_layer)
        self.n_head = self._per_layer("attention.head_count", [0] * self.n_layer)
        self.n_head_kv = self._per_layer("attention.head_count_kv", self.n_head)
        self.n_vocab = self._vocabulary(model)
        self.n_embd_per_layer = self._count("embedding_length_per_layer_input", 0)
        self.nextn = self._count("nextn_predict_layers", 0)
        self.causal = bool(get("attention.causal", True)) and arch not in NON_CAUSAL
        self._sliding()
        self._heads()
        self._recurrent()
        self.kv_from_start = self._kv_from_start()
        self.n_pos = self._positions()

    def _count(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if value is None:
            raise ModelError(f"key {self.arch}.{key} is missing in the header; llama.cpp refuses such a file")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelError(f"key {self.arch}.{key} is {value!r:.60}, must be a number of 0 or more")
        return value

    def _per_layer(self, key: str, default: list[int]) -> list[int]:
        value = self.get(key)
        if value is None:
            return list(default)
        if isinstance(value, (list, tuple)):
            if len(value) < self.n_layer:
                raise ModelError(
                    f"key {self.arch}.{key} has {len(value)} values, must have one for each of {self.n_layer} layers"
                )
            return [int(x) for x in value[: self.n_layer]]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"key {self.arch}.{key} is {value!r:.60}, must be a number or a list of numbers")
        return [value] * self.n_layer

    def _vocabulary(self, model: Mapping[str, Any]) -> int:
        """vocab.n_tokens(): the tensors must agree with it, so the embedding tells it in every file."""
        by_name = {t[0]: t[1] for t in model.get("tensors", ()) if t[0] in ("token_embd.weight", "output.weight")}
        for name in ("token_embd.weight", "output.weight"):
            dims = by_name.get(name)
            if dims is not None and len(dims) > 1:
                return int(dims[1])
        return self._count("vocab_size")

    def _sliding(self) -> None:
        arch, n_layer = self.arch, self.n_layer
        self.n_swa = 0
        self.sliding = False
        self.swa = [False] * n_layer
        window = self.get("attention.sliding_window")
        period = self.get("attention.sliding_window_pattern")
        scalar_period = period if isinstance(period, int) and not isinstance(period, bool) else None
        if arch in SLIDING:
            default, period, dense_first = SLIDING[arch]
            self.n_swa = int(window) if window is not None else default
            if arch in ("gemma3n", "cohere2", "gpt-oss", "exaone-moe", "gemma-embedding") and window is None:
                raise ModelError(f"key {arch}.attention.sliding_window is missing; llama.cpp refuses such a file")
            always = arch in ("gemma2", "gemma3n", "cohere2", "gpt-oss", "exaone-moe", "gemma-embedding")
            if always or self.n_swa > 0:
                self._pattern(scalar_period if scalar_period is not None else period, dense_first)
        elif arch in SLIDING_BY_ARRAY:
            self.n_swa = self._count("attention.sliding_window")
            raw = self.get("attention.sliding_window_pattern")
            if raw is None:
                raise ModelError(
                    f"key {arch}.attention.sliding_window_pattern is missing; llama.cpp refuses such a file"
                )
            flags = list(raw) if isinstance(raw, (list, tuple)) else [raw] * n_layer
            if len(flags) < n_layer:
                raise ModelError(f"key {arch}.attention.sliding_window_pattern has {len(flags)} of {n_layer} values")
            self.swa = [bool(x) for x in flags[:n_layer]]
            self.sliding = True
        elif arch == "llama4":
            # :903-918: absent means chunked attention of 8192; only an explicit 0 turns it off.
            if window is None or int(window) != 0:
                self.n_swa = 8192
                self._pattern(scalar_period if scalar_period is not None else 4, False)
        elif arch == "exaone4":
            # :2278-2292: only the 64-layer model (32B) slides.
            if n_layer == 64:
                self.n_swa = int(window) if window is not None else 4096
                self._pattern(scalar_period if scalar_period is not None else 4, False)
        elif arch == "smallthinker":
            if window is not None and int(window) > 0:
                self.n_swa = 4096  # :2684: the value of the file is overwritten
                self._pattern(scalar_period if scalar_period is not None else 4, True)
        elif arch == "lfm2" and window is not None and int(window) > 0:
            self.n_swa = int(window)
            self.swa = [kv != 0 for kv in self.n_head_kv]
            self.sliding = True

    def _pattern(self, period: int, dense_first: bool) -> None:
        """llama_hparams::set_swa_pattern (llama-hparams.cpp:8)."""
        self.sliding = True
        if period == 0:
            self.swa = [True] * self.n_layer
        elif dense_first:
            self.swa = [il % period != 0 for il in range(self.n_layer)]
        else:
            self.swa = [il % period < period - 1 for il in range(self.n_layer)]

    def _heads(self) -> None:
        full_k = full_v = 0
        if self.n_head[0] > 0:
            full_k = full_v = self.n_embd // self.n_head[0]
            full_k = self._count("attention.key_length", full_k)
            full_v = self._count("attention.value_length", full_v)
        swa_k = self._count("attention.key_length_swa", full_k)
        swa_v = self._count("attention.value_length_swa", full_v)
        self.head_k = [swa_k if s else full_k for s in self.swa]
        self.head_v = [swa_v if s else full_v for s in self.swa]
        self.head_k_mla = self.head_v_mla = 0
        if self.arch in ("deepseek2", "mistral4", "glm-dsa", "kimi-linear"):
            self.head_k_mla = self._count("attention.key_length_mla", 0)
            self.head_v_mla = self._count("attention.value_length_mla", 0)
        self.is_mla = self.head_k_mla != 0 and self.head_v_mla != 0

    def _recurrent(self) -> None:
        arch, n_layer = self.arch, self.n_layer
        self.recurrent = [arch in RECURRENT] * n_layer
        if arch in ("jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear"):
            self.recurrent = [kv == 0 for kv in self.n_head_kv]
        elif arch in ("nemotron_h", "nemotron_h_moe"):
            self.recurrent = [kv == 0 and ff == 0 for kv, ff in zip(self.n_head_kv, self.n_ff)]
        elif arch in ("qwen3next", "qwen35", "qwen35moe"):
            interval = self._count("full_attention_interval", 4)
            self.recurrent = [(il + 1) % interval != 0 for il in range(n_layer)]
        elif arch == "falcon-h1":
            self.recurrent = [True] * n_layer
        self.n_embd_r, self.n_embd_s = self._state_sizes() if any(self.recurrent) else (0, 0)

    def _state_sizes(self) -> tuple[int, int]:
        """llama_hparams::n_embd_r and n_embd_s (llama-hparams.cpp:155-196): values for each layer and cell."""
        if self.arch in ("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"):
            return self._count("token_shift_count", 2) * self.n_embd, self.n_embd * self._count("wkv.head_size")
        if self.arch in ("lfm2", "lfm2moe"):
            return self.n_embd * (self._count("shortconv.l_cache") - 1), 0
        d_conv = self._count("ssm.conv_kernel")
        if self.arch == "kimi-linear":
            head = self._count("kda.head_dim")
            conv = d_conv - 1 if d_conv > 0 else 3
            return 3 * conv * self.n_head[0] * head, head * head * self.n_head[0]
        d_inner, d_state = self._count("ssm.inner_size"), self._count("ssm.state_size")
        # mamba and jamba do not read ssm.group_count (:1683, :1769)
        groups = 0 if self.arch in ("mamba", "jamba") else self._count("ssm.group_count")
        return max(d_conv - 1, 0) * (d_inner + 2 * groups * d_state), d_state * d_inner

    def _kv_from_start(self) -> int:
        """n_layer_kv_from_start: the layers from this one on own no cache."""
        if self.arch == "gemma3n":
            return 20
        if self.arch == "gemma4":
            return self.n_layer - self._count("attention.shared_kv_layers", 0)
        if self.arch in NEXTN_WITHOUT_KV:
            return self.n_layer - self.nextn
        return self.n_layer

    def _positions(self) -> int:
        """Position inputs for each token: 4 with multimodal rope, 0 where the graph has no rope."""
        if self.arch in NO_ROPE:
            return 0
        if self.arch in MROPE:
            return 4
        if self.arch in ("glm4", "glm4moe"):
            sections = self.get("rope.dimension_sections")
            if isinstance(sections, (list, tuple)) and len(sections) > 1 and sections[0] > 0 and sections[1] > 0:
                return 4
        return 1

    def lists(self) -> list[Sequence[Any]]:
        """The values of the architecture's keys that have one for each layer, or another list."""
        return self._lists

    def k_gqa(self, il: int) -> int:
        """Values of K for each cell of a layer."""
        return self.head_k[il] * self.n_head_kv[il]

    def v_gqa(self, il: int) -> int:
        """Values of V for each cell of a layer."""
        return self.head_v[il] * self.n_head_kv[il]

    @property
    def v_gqa_max(self) -> int:
        """The largest V of all layers: what every V is padded to without flash attention."""
        return max(self.v_gqa(il) for il in range(self.n_layer))

    def attention_layers(self) -> list[int]:
        """Layers that own a K/V cache (create_memory's filters and has_kv)."""
        if self.arch in NO_MEMORY or self.arch in RECURRENT:
            return []
        layers = range(min(self.n_layer, self.kv_from_start))
        if self.arch == "falcon-h1":
            return list(layers)
        if self.arch in ("nemotron_h", "nemotron_h_moe"):
            return [il for il in layers if not self.recurrent[il] and self.n_ff[il] == 0]
        return [il for il in layers if not self.recurrent[il]]

    def recurrent_layers(self) -> list[int]:
        """Layers that own a recurrent state."""
        return [il for il in range(self.n_layer) if self.recurrent[il]]
