# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The compute graphs of llama.cpp's architectures, as shapes.

Builder follows llm_graph_context (src/llama-graph.cpp) of TheTom/llama-cpp-turboquant at 69d8e4be; what
an architecture does differently follows src/models/*.cpp. Most architectures are one transformer that
differs in a few points (Spec) and in which tensors the file has: a bias or a norm that is there is used.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _ggml as gg
from ansible_collections.llamafleet.turboquant.plugins.module_utils._cache_types import is_turbo, pad
from ansible_collections.llamafleet.turboquant.plugins.module_utils._ggml import T
from ansible_collections.llamafleet.turboquant.plugins.module_utils._hparams import HParams, words

SOFTMAX, SIGMOID, SOFTMAX_WEIGHT = 1, 2, 3  # llama_expert_gating_func_type
CHAMELEON_IMAGE_TOKENS = 8196 - 4  # src/models/chameleon.cpp: img_token_end_idx - img_token_start_idx


class Spec(NamedTuple):
    """Where a transformer differs from LLaMA's."""

    norm: str = "rms_norm"  # or norm
    pre_norm: bool = True  # a norm before attention
    plain_norm: bool = False  # norms without weights (OLMo)
    qk_norm: str = "head"  # where attn_q_norm goes: head (after the split), flat (before it), late (after rope)
    rope: str = "all"  # all | none | swa (sliding layers only) | step (all but every fourth) | step0
    rope_factors: bool = False
    scale_q: bool = False
    scale_input: bool = False  # a scale after the embedding
    attn_gate: str = ""  # flat: attn_gate over all heads' values; head: one gate for each head
    sub_norm: bool = False  # BitNet
    parallel: str = ""  # "": serial; attn: FFN of the attention's norm; own: FFN of its own norm of the input
    post_norm: bool = False  # post_attention_norm and post_ffw_norm before the residual additions
    ffn_norm: str = "ffn_norm"
    ffn: str = "silu"  # silu | gelu | relu_sqr | xielu, with a gate where the file has one
    fused_up: bool = False  # up holds gate and up (swiglu)
    norm_w: str = "true"  # expert weights are normalised: true | false | key
    gating: int = SOFTMAX  # 0: from the key
    probs_bias: bool = False
    shared: str = ""  # shared experts: plain | sigmoid | silu_div
    residual_scale: str = ""  # key: from <arch>.residual_scale; always
    logit_scale: str = ""  # key | always
    softcap: bool = False
    rows_after_norm: bool = False
    position_embedding: bool = False
    embedding_norm: bool = False
    attn_temp: bool = False
    moe_act: str = "silu"


_LAYERNORM = Spec(norm="norm")
_GPT = Spec(norm="norm", rope="none", ffn="gelu", position_embedding=True)
_KEYED = Spec(norm_w="key", gating=0, probs_bias=True, shared="plain")

# One line for each architecture of src/models/ that is such a transformer.
SPECS: dict[str, Spec] = {
    "llama": Spec(rope_factors=True, shared="plain"),
    "llama-embed": Spec(rope_factors=True),
    "llada": Spec(),
    "llada-moe": Spec(norm_w="false"),
    "rnd1": Spec(),
    "dream": Spec(),
    "arcee": Spec(rope_factors=True, ffn="relu_sqr"),
    "mistral3": Spec(rope_factors=True, attn_temp=True),
    "deci": Spec(rope_factors=True),
    "baichuan": Spec(),
    "xverse": Spec(),
    "internlm2": Spec(),
    "orion": _LAYERNORM,
    "refact": Spec(rope="none"),
    "qwen": Spec(),
    "qwen2": Spec(),
    "qwen2vl": Spec(),
    "qwen2moe": Spec(norm_w="false", shared="silu_div"),
    "qwen3": Spec(),
    "qwen3moe": Spec(),
    "qwen3vl": Spec(),
    "qwen3vlmoe": Spec(),
    "maincoder": Spec(qk_norm="late"),
    "exaone": Spec(rope_factors=True),
    "exaone4": Spec(pre_norm=False, rope="swa", rope_factors=True, post_norm=True, ffn_norm=""),
    "exaone-moe": _KEYED._replace(rope="swa", rope_factors=True),
    "pangu-embedded": Spec(),
    "ernie4_5": Spec(),
    "ernie4_5-moe": Spec(probs_bias=True, shared="plain"),
    "paddleocr": Spec(),
    "smollm3": Spec(rope="step"),
    "seed_oss": Spec(ffn_norm="post_attention_norm"),
    "apertus": Spec(rope_factors=True, ffn="xielu"),
    "chameleon": Spec(),
    "cogvlm": Spec(),
    "openelm": Spec(),
    "chatglm": Spec(fused_up=True),
    "glm4": Spec(post_norm=True, fused_up=True),
    "glm4moe": _KEYED._replace(ffn_norm="post_attention_norm"),
    "deepseek": Spec(rope_factors=True, norm_w="false", shared="plain"),
    "dots1": _KEYED,
    "bailingmoe": Spec(rope_factors=True, norm_w="key", shared="plain"),
    "bailingmoe2": _KEYED,
    "hunyuan-moe": Spec(rope_factors=True, qk_norm="late", shared="plain"),
    "hunyuan-dense": Spec(rope_factors=True, qk_norm="late"),
    "granite": Spec(rope_factors=True, residual_scale="key", logit_scale="always", shared="plain"),
    "granitemoe": Spec(rope_factors=True, residual_scale="key", logit_scale="always", shared="plain"),
    "minicpm": Spec(rope_factors=True, residual_scale="always", logit_scale="always", shared="plain"),
    "minimax-m2": Spec(qk_norm="flat", gating=0, probs_bias=True),
    "olmo": Spec(norm="norm", plain_norm=True),
    "olmo2": Spec(pre_norm=False, qk_norm="flat", post_norm=True, ffn_norm=""),
    "olmoe": Spec(qk_norm="flat", norm_w="false"),
    "phi2": Spec(norm="norm", scale_q=True, parallel="attn", ffn="gelu"),
    "phi3": Spec(rope_factors=True, scale_q=True, fused_up=True),
    "phimoe": Spec(rope_factors=True, scale_q=True),
    "gemma": Spec(scale_q=True, scale_input=True, ffn="gelu"),
    "gemma2": Spec(scale_q=True, scale_input=True, post_norm=True, ffn="gelu", softcap=True),
    "gemma3": Spec(scale_q=True, scale_input=True, post_norm=True, ffn="gelu", softcap=True),
    "gemma-embedding": Spec(scale_q=True, scale_input=True, post_norm=True, ffn="gelu"),
    "command-r": Spec(norm="norm", parallel="attn", logit_scale="key"),
    "cohere2": Spec(norm="norm", rope="swa", rope_factors=True, parallel="attn", logit_scale="key"),
    "plamo": Spec(parallel="attn"),
    "plamo3": Spec(post_norm=True, fused_up=True),
    "falcon": Spec(norm="norm", parallel="attn", ffn="gelu"),
    "gptneox": Spec(norm="norm", parallel="own", ffn="gelu"),
    "stablelm": _LAYERNORM,
    "nemotron": Spec(norm="norm", ffn="relu_sqr"),
    "jais2": Spec(norm="norm", ffn="relu_sqr"),
    "starcoder2": Spec(norm="norm", ffn="gelu"),
    "codeshell": Spec(norm="norm", ffn="gelu"),
    "gpt2": _GPT,
    "starcoder": _GPT,
    "bloom": Spec(norm="norm", rope="none", ffn="gelu", embedding_norm=True),
    "mpt": _GPT._replace(qk_norm="flat"),
    "jais": Spec(norm="norm", rope="none"),
    "dbrx": Spec(norm="norm", ffn_norm="attn_output_norm"),
    "bitnet": Spec(sub_norm=True),
    "gpt-oss": Spec(ffn_norm="post_attention_norm", norm_w="false", gating=SOFTMAX_WEIGHT, moe_act="swiglu_oai"),
    "llama4": Spec(rope="step", rope_factors=True, qk_norm="llama4", norm_w="false", gating=SIGMOID, shared="plain"),
    "smallthinker": Spec(rope="step0", gating=0, moe_act="relu"),
    "afmoe": _KEYED._replace(rope="step", scale_input=True, attn_gate="flat", post_norm=True, rows_after_norm=True),
    "mimo2": Spec(gating=SIGMOID, probs_bias=True),
    "step35": _KEYED._replace(rope_factors=True, attn_gate="head"),
    "grovemoe": Spec(),
    "grok": Spec(post_norm=True, ffn="gelu", moe_act="gelu", logit_scale="always", softcap=True),
    "arctic": Spec(),
}


class Builder:
    """llm_graph_context: builds the graph of one micro-batch for the reserve step."""

    def __init__(self, s: Any, kept: Sequence[int] = ()) -> None:
        self.s = s
        self.kept = frozenset(kept)  # the layers to build; none means all
        self.starts: list[int] = []  # nodes in the graph where each layer starts, and after the last
        self.h: HParams = s.model.hparams
        c = s.context
        # llama-fit-params measures without allocating, and ggml_backend_sched_reserve_size (ggml-backend.cpp:1838)
        # forgets which backend a tensor was wanted on; the server's own reserve does not
        self.keeps_wishes: bool = s.options["program"] == "llama-server"
        self.fa: bool = s.flash_attn
        self.n_seqs: int = c.n_seq
        self.n_tokens = pad(min(c.n_ctx, c.n_ubatch), c.n_seq)
        self.n_seq_tokens = self.n_tokens // self.n_seqs
        # newer servers ask for the logits of one token for each slot (n_outputs_max)
        every = s.build.outputs_for_all_tokens or s.options["program"] != "llama-server"
        self.n_out = self.n_tokens if every else min(self.n_tokens, max(c.n_seq, 1))
        self.n_stream: int = c.n_stream
        self.g = gg.Graph()
        self._weights: dict[Any, T] = {}
        self._by_layer = s.model.by_layer
        self._kv: dict[int, tuple[T, T | None, Any, Any]] = {}
        self._masks: dict[str, tuple[T, T]] = {}
        self._ids: dict[str, tuple[T, T]] = {}
        self._rotations: dict[str, tuple[T | None, T | None]] = {}
        self._scales: dict[str, T | None] = {}
        self._out_ids: T | None = None
        self._pos: T | None = None
        self._s_copy: T | None = None
        self._temp: T | None = None
        self._rs: dict[int, tuple[T, T]] = {}
        self.cache_of = {layer.il: (cache, layer) for cache in s.caches for layer in cache.layers}

    def layers(self, count: int) -> Iterator[int]:
        """The layers to build, of `count`."""
        for il in range(count):
            if not self.kept or il in self.kept:
                self.starts.append(len(self.g.nodes))
                yield il
        self.starts.append(len(self.g.nodes))

    # --- tensors of the model and of the caches -------------------------------------------------------------

    def weight(self, name: str) -> T | None:
        """A weight where the loader put it, or None where the file has none."""
        t = self._weights.get(name)
        if t is not None:
            return t
        source = self.s.model.by_name.get(name)
        where = self.s.weights.where.get(name)
        if source is None and name == "output.weight" and where is not None:
            source = self.s.model.by_name["token_embd.weight"]
        if source is None or where is None:
            return None
        t = _weight_tensor(source, where)
        self._weights[name] = t
        return t

    def w(self, il: int, kind: str, suffix: str = "weight") -> T | None:
        """A weight of a layer; most that are asked for are not there."""
        source = self._by_layer[il].get(f"{kind}.{suffix}" if suffix else kind)
        if source is None:
            return None
        t = self._weights.get(source.name)
        if t is None:
            where = self.s.weights.where.get(source.name)
            if where is not None:
                t = self._weights[source.name] = _weight_tensor(source, where)
        return t

    def need(self, il: int, kind: str, suffix: str = "weight") -> T:
        t = self.w(il, kind, suffix)
        if t is None:
            raise MissingTensorError(f"blk.{il}.{kind}.{suffix}")
        return t

    def rope_factors(self, il: int) -> T | None:
        name = rope_factors_name(self.s)
        source = self.s.model.by_name.get(name)
        if source is None:
            return None
        owner = self.s.placement.layers[il]
        key = (name, owner)
        if key not in self._weights:
            self._weights[key] = _weight_tensor(source, owner)
        return self._weights[key]

    def _cache_device(self, il: int) -> int:
        return self.s.placement.layers[il] if self.s.options["kv_offload"] else gg.CPU

    def kv(self, il: int) -> tuple[T, T | None, Any, Any]:
        """K and V of a layer, its cache and its entry."""
        h = self.h
        source = il
        if il not in self.cache_of:
            source = h.kv_from_start - (2 if h.swa[il] else 1)
        found = self._kv.get(source)
        if found is None:
            cache, layer = self.cache_of[source]
            k = gg.new(layer.type_k, layer.ne_k, cache.cells, self.n_stream)
            k.buf = self._cache_device(source)
            v = None
            if layer.type_v:
                v = gg.new(layer.type_v, layer.ne_v, cache.cells, self.n_stream)
                v.buf = k.buf
            found = (k, v, cache, layer)
            self._kv[source] = found
        return found

    def _innerq(self, cache: Any) -> T | None:
        """turbo_innerq_scale_inv: 128 floats in the buffer of the cache's first layer."""
        if cache.kind not in self._scales:
            scale = None
            if cache.rotation:
                scale = gg.new("f32", 128)
                scale.buf = self._cache_device(cache.layers[0].il)
            self._scales[cache.kind] = scale
        return self._scales[cache.kind]

    # --- inputs ---------------------------------------------------------------------------------------------

    def input(self, ty: str, *ne: int) -> T:
        t = gg.new(ty, *ne)
        t.flags = gg.INPUT
        return t

    def embedding(self) -> T:
        """build_inp_embd: rows of the embedding, and the unused input for embeddings of its size."""
        h = self.h
        tokens = self.input("i32", self.n_tokens)
        table = self.weight("token_embd.weight") or self.weight("output.weight")
        if table is None:
            raise MissingTensorError("token_embd.weight")
        deepstack = int(h.get("n_deepstack_layers", 0)) if h.arch in ("qwen3vl", "qwen3vlmoe") else 0
        width = h.n_embd * (1 + deepstack)
        unused = self.input("f32", width, self.n_tokens)
        cur = gg.get_rows(table, tokens)
        if deepstack:
            cur = gg.pad0(cur, width - h.n_embd)
        self.g.expand(cur)
        self.g.expand(unused)
        self.deepstack_input = cur
        if deepstack:
            cur = gg.view_2d(cur, h.n_embd, self.n_tokens, cur.nb[1])
        if self._embedding_scale():
            cur = gg.like("scale", cur)
        self.g.expand(cur)
        return cur

    def _embedding_scale(self) -> bool:
        """f_embedding_scale != 0 (build_inp_embd)."""
        h = self.h
        if h.arch in ("minicpm", "grok"):
            return float(h.get("embedding_scale", 1.0)) != 0.0
        return h.arch in ("granite", "granitemoe", "granitehybrid") and float(h.get("embedding_scale", 0.0)) != 0.0

    def pos(self) -> T:
        if self._pos is None:
            self._pos = self.input("i32", self.n_tokens * max(self.h.n_pos, 1))
        return self._pos

    def out_ids(self) -> T:
        if self._out_ids is None:
            self._out_ids = self.input("i32", self.n_out)
        return self._out_ids

    def rows(self, cur: T) -> T:
        return gg.get_rows(cur, self.out_ids())

    def temperature(self) -> T:
        if self._temp is None:
            self._temp = self.input("f32", 1, 1, self.n_tokens)
        return self._temp

    def mask(self, cache: Any) -> T:
        found = self._masks.get(cache.kind)
        if found is None:
            f32 = self.s.build.mask_is_f32 or not self.fa
            mask = self.input("f32" if f32 else "f16", cache.cells, self.n_tokens // self.n_stream, 1, self.n_stream)
            found = (mask, gg.cast(mask, "f16") if self.fa and f32 else mask)
            self._masks[cache.kind] = found
        return found[1]

    def ids(self, cache: Any) -> tuple[T, T]:
        found = self._ids.get(cache.kind)
        if found is None:
            n_v = self.n_tokens * self.h.v_gqa_max if self.s.v_trans else self.n_tokens
            found = (self.input("i64", self.n_tokens), self.input("i64", n_v))
            self._ids[cache.kind] = found
        return found

    def rotation(self, cache: Any) -> tuple[T | None, T | None]:
        """build_input_k_rot and _v_rot (llama-kv-cache.cpp:1600-1650)."""
        found = self._rotations.get(cache.kind)
        if found is None:
            h, build, env = self.h, self.s.build, self.s.env
            sides: list[T | None] = []
            for side, ty, heads in (("K", cache.type_k, h.head_k), ("V", cache.type_v, h.head_v)):
                of_cache = {heads[layer.il] for layer in cache.layers}
                quantized = gg.TYPES[ty].quantized
                fits = len(of_cache) == 1 and heads[0] % 64 == 0
                if build.rotates_by_default:
                    wanted = _atoi(env.get("LLAMA_ATTN_ROT_DISABLE")) == 0
                else:
                    wanted = _atoi(env.get(f"LLAMA_ATTN_ROT_{side}_OVERRIDE")) != 0
                    wanted = wanted and _atoi(env.get("LLAMA_ATTN_ROT_DISABLE")) == 0
                if not (wanted and quantized and fits and of_cache):
                    sides.append(None)
                    continue
                n = 64
                if side == "K" and build.rotates_by_default:
                    head = next(iter(of_cache))
                    while head % (2 * n) == 0:
                        n *= 2
                sides.append(self.input("f32", n, n))
            found = (sides[0], sides[1])
            self._rotations[cache.kind] = found
        return found

    # --- building blocks ------------------------------------------------------------------------------------

    def norm(self, cur: T, w: T | None, b: T | None = None, kind: str = "rms_norm", il: int = -1) -> T:
        cur = gg.like(kind, cur)
        if (w is not None or b is not None) and il >= 0:
            cur.backend = self._norm_backend(il)
        if w is not None:
            cur = gg.like("mul", cur, w)
        if b is not None:
            cur = gg.like("add", cur, b)
        return cur

    def _norm_backend(self, il: int) -> int:
        """graph_get_cb (llama-context.cpp:2201): norms stay on their layer when everything is offloaded."""
        p = self.s.placement
        if not self.keeps_wishes or not (self.n_tokens < 32 or p.offloads_all):
            return gg.NOWHERE
        owner: int = p.layers[il]
        return owner if owner >= 0 else len(p.devices)

    def lnorm(self, cur: T, il: int, kind: str, op: str = "rms_norm") -> T:
        return self.norm(cur, self.w(il, kind), self.w(il, kind, "bias"), op, il)

    def mm(self, il: int, kind: str, cur: T) -> T:
        """build_lora_mm with the layer's scale where the file has one (NVFP4)."""
        cur = gg.mul_mat(self.need(il, kind), cur)
        scale = self.w(il, kind, "scale")
        return gg.like("mul", cur, scale) if scale is not None else cur

    def mmb(self, il: int, kind: str, cur: T) -> T:
        cur = self.mm(il, kind, cur)
        bias = self.w(il, kind, "bias")
        return gg.like("add", cur, bias) if bias is not None else cur

    def unary(self, cur: T) -> T:
        return gg.like("unary", cur)

    def rope(self, cur: T, factors: T | None = None) -> T:
        return gg.like("rope", cur, self.pos(), factors)

    def qkv(self, il: int, cur: T, head: int, n_head: int, n_kv: int, flat_norm: bool = False) -> tuple[T, T, T]:
        """build_qkv."""
        n = self.n_tokens
        clamp = self.h.arch in ("dbrx", "olmo", "mpt") and float(self.h.get("attention.clamp_kqv", 0.0) or 0.0) > 0.0
        if self.w(il, "attn_qkv") is not None:
            qkv = self.mmb(il, "attn_qkv", cur)
            if clamp:
                qkv = gg.clamp(qkv)
            row = head * 4
            views = [gg.view_3d(qkv, head, count, n, row, qkv.nb[1]) for count in (n_head, n_kv, n_kv)]
            if flat_norm and self.w(il, "attn_q_norm") is not None:
                q = self.lnorm(gg.reshape(gg.cont(views[0]), head * n_head, n), il, "attn_q_norm", "norm")
                k = self.lnorm(gg.reshape(gg.cont(views[1]), head * n_kv, n), il, "attn_k_norm", "norm")
                return gg.reshape(q, head, n_head, n), gg.reshape(k, head, n_kv, n), views[2]
            return views[0], views[1], views[2]
        sides = []
        for kind, count in (("attn_q", n_head), ("attn_k", n_kv), ("attn_v", n_kv)):
            side = self.mmb(il, kind, cur)
            if clamp:
                side = gg.clamp(side)
            if flat_norm and kind != "attn_v" and self.w(il, kind + "_norm") is not None:
                side = self.lnorm(side, il, kind + "_norm")
            width = side.ne[0] // count if count else head
            sides.append(gg.reshape(side, width, count, n))
        return sides[0], sides[1], sides[2]

    def attention(self, il: int, q: T, k: T | None, v: T | None, sinks: T | None = None, wo: bool = True) -> T:
        """build_attn for a cache with K and V: kv, iswa and hybrid."""
        h = self.h
        if h.arch in NO_CACHE:
            return self._attention_no_cache(il, q, k, v, wo)
        k_cache, v_cache, cache = self.kv(il)[:3]
        k_rot, v_rot = self.rotation(cache)
        if k_rot is not None:
            q = self._rotate(q, k_rot)
            k = self._rotate(k, k_rot) if k is not None else None
        if v_rot is not None and v is not None:
            v = self._rotate(v, v_rot)
        self.g.expand(q)
        for side in (k, v) if h.sliding else (v, k):
            if side is not None:
                self.g.expand(side)
        k_ids, v_ids = self.ids(cache)
        if k is not None:
            self.g.expand(self._store_k(k_cache, k, k_ids))
        if v is not None and v_cache is not None:
            self.g.expand(self._store_v(v_cache, v, v_ids))
        head_k = pad(h.head_k[il], 128) if is_turbo(k_cache.ty) else h.head_k[il]
        n_kv = h.n_head_kv[il]
        k_view = self._cache_view(k_cache, head_k, n_kv, cache.cells)
        if v_cache is None:  # cannot be: the graph was built with it
            raise AssertionError("v_cache")
        head_v = pad(h.head_v[il], 128) if is_turbo(v_cache.ty) else h.head_v[il]
        if self.s.v_trans:
            size = gg.TYPES[v_cache.ty]
            cells = cache.cells
            v_view = gg.view(
                v_cache,
                (cells, n_kv, head_v, self.n_stream),
                (size.row(cells * head_v), size.row(cells), size.row(cells * v_cache.ne[0])),
            )
        else:
            v_view = self._cache_view(v_cache, head_v, n_kv, cache.cells)
        q = self._prepare_q(q, k_cache, cache)
        cur = self._mha(il, q, k_view, v_view, self.mask(cache), sinks, None, cache)
        if is_turbo(v_cache.ty) and head_v != h.head_v[il]:
            n_head = h.n_head[il]
            cur = gg.reshape(cur, head_v, n_head, cur.ne[1])
            cur = gg.cont(gg.view_3d(cur, h.head_v[il], n_head, cur.ne[2], cur.nb[1], cur.nb[2]))
            cur = gg.reshape(cur, h.head_v[il] * n_head, cur.ne[2])
        if v_rot is not None:
            cur = self._rotate(cur, v_rot)
        return self.mmb(il, "attn_output", cur) if wo else cur

    def attention_k(self, il: int, q: T, k: T, v_width: int, wv_b: T) -> T:
        """build_attn for MLA: one cache, V is a view of K."""
        k_cache, cache = self.kv(il)[0], self.kv(il)[2]
        self.g.expand(q)
        self.g.expand(k)
        k_ids = self.ids(cache)[0]
        self.g.expand(self._store_k(k_cache, k, k_ids))
        head_k = pad(self.h.head_k[il], 128) if is_turbo(k_cache.ty) else self.h.head_k[il]
        k_view = self._cache_view(k_cache, head_k, self.h.n_head_kv[il], cache.cells)
        v_view = gg.view(k_view, (v_width, *k_view.ne[1:]), k_view.nb[1:])
        q = self._prepare_q(q, k_cache, cache)
        cur = self._mha(il, q, k_view, v_view, self.mask(cache), None, wv_b, cache)
        return self.mmb(il, "attn_output", cur)

    def _attention_no_cache(self, il: int, q: T, k: T | None, v: T | None, wo: bool) -> T:
        if k is None:  # cannot be: the graph was built with it
            raise AssertionError("k")
        if v is None:  # cannot be: the graph was built with it
            raise AssertionError("v")
        kind = "swa" if self.h.swa[il] else "base"
        for side in (q, k, v):
            self.g.expand(side)
        if kind not in self._masks:
            mask = self.input("f32", self.n_tokens, self.n_tokens)
            self._masks[kind] = (mask, gg.cast(mask, "f16") if self.fa else mask)
        cur = self._mha(il, q, k, v, self._masks[kind][1], None, None, None)
        return self.mmb(il, "attn_output", cur) if wo else cur

    def _rotate(self, cur: T, rot: T) -> T:
        n = rot.ne[0]
        total = cur.ne[0] * cur.ne[1] * cur.ne[2] * cur.ne[3]
        res = gg.mul_mat(rot, gg.reshape(cur, n, total // n))
        return gg.reshape(res, *cur.ne)

    def _prepare_q(self, q: T, k_cache: T, cache: Any) -> T:
        """Pad and rotate Q where K is turbo."""
        if not is_turbo(k_cache.ty):
            return q
        if q.ne[0] % 128:
            q = gg.pad0(q, pad(q.ne[0], 128) - q.ne[0])
        if not gg.is_contiguous(q):
            q = gg.cont(q)
        return gg.op("turbo_wht", q.ne, q, self._innerq(cache))

    def _cache_view(self, cache: T, head: int, heads: int, cells: int) -> T:
        size = gg.TYPES[cache.ty]
        width = size.row(cache.ne[0])
        return gg.view(cache, (head, heads, cells, self.n_stream), (size.row(head), width, width * cells))

    def _store_k(self, cache: T, k: T, ids: T) -> T:
        if is_turbo(cache.ty) and k.ne[0] % 128:
            k = gg.pad0(k, pad(k.ne[0], 128) - k.ne[0])
        k = gg.view_2d(k, k.ne[0] * k.ne[1], k.ne[2], k.nb[2])
        if self.n_stream > 1:
            cache = gg.reshape(cache, cache.ne[0], cache.ne[1] * self.n_stream)
        return gg.set_rows(cache, k, ids)

    def _store_v(self, cache: T, v: T, ids: T) -> T:
        if is_turbo(cache.ty) and v.ne[0] % 128:
            v = gg.pad0(v, pad(v.ne[0], 128) - v.ne[0])
        width, n = v.ne[0] * v.ne[1], v.ne[2]
        if not self.s.v_trans:
            v = gg.view_2d(v, width, n, v.nb[2])
            if self.n_stream > 1:
                cache = gg.reshape(cache, cache.ne[0], cache.ne[1] * self.n_stream)
            return gg.set_rows(cache, v, ids)
        v = gg.reshape(v, width, n) if v.nb[2] == width * 4 else gg.cont_2d(v, width, n)
        if width < cache.ne[0]:
            v = gg.pad0(v, cache.ne[0] - width)
        total = cache.ne[0] * cache.ne[1] * cache.ne[2]
        return gg.set_rows(_column(cache, total), gg.reshape(v, 1, v.ne[0] * v.ne[1]), ids)

    def _mha(
        self, il: int, q: T, k: T, v: T, mask: T, sinks: T | None, v_mla: T | None, cache: Any, bias: T | None = None
    ) -> T:
        """build_attn_mha."""
        h = self.h
        v_trans = v.nb[1] > v.nb[2]
        ns = k.ne[3]
        q = gg.view(q, (q.ne[0], q.ne[1], q.ne[2] // ns, ns), (q.nb[1], q.nb[2], q.nb[3] // ns))
        q = gg.permute(q, 0, 2, 1, 3)
        k = gg.permute(k, 0, 2, 1, 3)
        v = gg.permute(v, 0, 2, 1, 3)
        innerq = self._innerq(cache) if cache is not None and not h.sliding else None
        if self.fa and bias is None:
            if v_trans:
                v = gg.transpose(v)
            if k.ty == "f32":
                k = gg.cast(k, "f16")
            if v.ty == "f32":
                v = gg.cast(v, "f16")
            cur = gg.op("flash_attn_ext", (v.ne[0], q.ne[2], q.ne[1], q.ne[3]), q, k, v, mask, sinks)
            cur.layer = il
            cur = self._inverse_wht(cur, k, v, innerq)
            if v_mla is not None:
                cur = gg.mul_mat(v_mla, gg.permute(cur, 0, 2, 1, 3))
                cur = gg.cont(gg.permute(cur, 0, 2, 1, 3))
            cur = gg.reshape(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3])
        else:
            kq = gg.mul_mat(k, q)
            if h.arch == "grok":
                kq = gg.like("scale", self.unary(gg.like("scale", kq)))
            if h.arch == "gemma2":
                kq = gg.like("scale", self.unary(gg.like("scale", kq)))
            if bias is not None:
                kq = gg.like("add", kq, bias)
            kq = gg.like("soft_max", kq, mask, sinks)
            if not v_trans:
                v = gg.cont(gg.transpose(v))
            kqv = gg.mul_mat(v, kq)
            kqv = self._inverse_wht(kqv, k, v, innerq)
            if v_mla is not None:
                kqv = gg.mul_mat(v_mla, kqv)
            cur = gg.permute(kqv, 0, 2, 1, 3)
            cur = gg.cont_2d(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3])
            if not self.s.options["kv_offload"] and self.keeps_wishes:
                cur.backend = len(self.s.placement.devices)
        self.g.expand(cur)
        return cur

    def _inverse_wht(self, cur: T, k: T, v: T, innerq: T | None) -> T:
        if not is_turbo(v.ty):
            return cur
        group_of = k if is_turbo(k.ty) else v
        group = 128 if group_of.ne[0] % 128 == 0 else 64
        if cur.ne[0] % group:
            return cur
        if not gg.is_contiguous(cur):
            cur = gg.cont(cur)
        return gg.op("turbo_wht", cur.ne, cur, innerq)

    def activate(self, kind: str, cur: T) -> T:
        cur = self.unary(cur)
        return gg.like("sqr", cur) if kind == "relu_sqr" else cur

    def ffn(self, il: int, cur: T, kind: str = "silu", fused: bool = False, suffix: str = "", down: bool = True) -> T:
        """build_ffn: with a gate where the file has one."""
        up_name, gate_name, down_name = f"ffn_up{suffix}", f"ffn_gate{suffix}", f"ffn_down{suffix}"
        tmp = self.mmb(il, up_name, cur)
        if fused:
            cur = gg.glu(tmp)
        elif self.w(il, gate_name) is not None and kind not in ("relu_sqr", "xielu"):
            gate = self.mmb(il, gate_name, cur)
            if self._clamped(il, "swiglu_clamp_shexp"):
                cur = gg.like("mul", gg.clamp(self.unary(gate)), gg.clamp(tmp))
            else:
                cur = gg.glu(gate, tmp)
        else:
            cur = self.activate(kind, tmp)
            scales = self.w(il, "ffn_act", "scales")
            if scales is not None:
                cur = gg.like("div", cur, scales)
        return self.mmb(il, down_name, cur) if down else cur

    def _clamped(self, il: int, key: str) -> bool:
        if self.h.arch != "step35":
            return False
        limits = self.h.get(key, 0.0)
        limit = limits[il] if isinstance(limits, (list, tuple)) else limits
        return float(limit) > 1e-6

    def moe(
        self,
        il: int,
        cur: T,
        act: str = "silu",
        norm_w: bool = True,
        gating: int = SOFTMAX,
        probs_bias: bool = False,
        logits: T | None = None,
        kinds: str = "exps",
        n_expert: int = 0,
        n_used: int = 0,
    ) -> T:
        """build_moe_ffn."""
        h, g, n = self.h, self.g, cur.ne[1]
        n_expert = n_expert or h.n_expert
        n_used = n_used or h.n_expert_used
        width = cur.ne[0]
        if logits is None:
            logits = self.mm(il, "ffn_gate_inp", cur)
        bias = self.w(il, "ffn_gate_inp", "bias")
        if bias is not None:
            logits = gg.like("add", logits, bias)
        if gating == SOFTMAX:
            probs = gg.like("soft_max", logits)
        elif gating == SIGMOID:
            probs = self.unary(logits)
        else:
            probs = logits
        selection = probs
        correction = self.w(il, "exp_probs_b", "bias") if probs_bias else None
        if correction is not None:
            selection = gg.like("add", probs, correction)
        if h.arch == "llama4":
            selection = logits
        if h.arch == "grovemoe":
            selection = self.unary(logits)
        groups = int(h.get("expert_group_count", 0) or 0)
        if groups > 1:
            selection = self._expert_groups(selection, groups, n_expert, n)
        selected = gg.argsort_top_k(selection, n_used)
        probs = gg.reshape(probs, 1, probs.ne[0], n)
        if h.arch == "grovemoe" and n_expert != h.n_expert:
            selected = gg.cast(gg.like("scale", gg.cast(selected, "f32")), "i32")
        weights = gg.get_rows(probs, selected)
        if gating == SOFTMAX_WEIGHT:
            weights = gg.like("soft_max", gg.reshape(weights, n_used, n))
            weights = gg.reshape(weights, 1, n_used, n)
        if norm_w:
            weights = gg.reshape(weights, n_used, n)
            weights = gg.like("div", weights, gg.clamp(gg.sum_rows(weights)))
            weights = gg.reshape(weights, 1, n_used, n)
        scale = float(h.get("expert_weights_scale", 0.0) or 0.0)
        if h.arch in _WEIGHT_SCALE and scale not in (0.0, 1.0):
            weights = gg.like("scale", weights)
        g.expand(weights)
        cur = gg.reshape(cur, width, 1, n)
        before = h.arch == "llama4"
        if before:
            repeated = gg.op("repeat", (width, n_used, n, 1), cur)
            cur = gg.like("mul", repeated, weights)
        gate_up = self.w(il, f"ffn_gate_up_{kinds}")
        has_gate = True
        if gate_up is not None:
            both = gg.mul_mat_id(gate_up, cur, selected)
            both = self._expert_extras(il, f"ffn_gate_up_{kinds}", both, selected, n_expert, n)
            n_ff = both.ne[0] // 2
            cur = gg.view_3d(both, n_ff, both.ne[1], both.ne[2], both.nb[1], both.nb[2])
            up = gg.view_3d(both, n_ff, both.ne[1], both.ne[2], both.nb[1], both.nb[2])
        else:
            up = gg.mul_mat_id(self.need(il, f"ffn_up_{kinds}"), cur, selected)
            up = self._expert_extras(il, f"ffn_up_{kinds}", up, selected, n_expert, n)
            gate = self.w(il, f"ffn_gate_{kinds}")
            has_gate = gate is not None and act != "relu_sqr"
            if has_gate and gate is not None:
                cur = gg.mul_mat_id(gate, cur, selected)
                cur = self._expert_extras(il, f"ffn_gate_{kinds}", cur, selected, n_expert, n)
            else:
                cur = up
        if self._clamped(il, "swiglu_clamp_exp"):
            cur = gg.like("mul", gg.clamp(self.unary(cur)), gg.clamp(up))
        elif has_gate:
            cur = gg.glu(cur, up)
        else:
            cur = self.activate(act, cur)
        experts = gg.mul_mat_id(self.need(il, f"ffn_down_{kinds}"), cur, selected)
        experts = self._expert_extras(il, f"ffn_down_{kinds}", experts, selected, n_expert, n)
        if not before:
            experts = gg.like("mul", experts, weights)
        g.expand(experts)
        views = []
        for _count in range(h.n_expert_used):
            one = gg.view_2d(experts, width, n, experts.nb[2])
            g.expand(one)
            views.append(one)
        out = views[0]
        for one in views[1:]:
            out = gg.like("add", out, one)
            g.expand(out)
        if h.n_expert_used == 1:
            out = gg.cont(out)
        return out

    def _expert_extras(self, il: int, kind: str, cur: T, selected: T, n_expert: int, n: int) -> T:
        """Bias and scale of experts."""
        bias = self.w(il, kind, "bias")
        if bias is not None:
            cur = gg.like("add_id", cur, bias, selected)
        scale = self.w(il, kind, "scale")
        if scale is not None:
            s = gg.op("repeat", (1, n_expert, n, 1), gg.reshape(scale, 1, n_expert, 1))
            cur = gg.like("mul", cur, gg.get_rows(s, selected))
        return cur

    def _expert_groups(self, selection: T, groups: int, n_expert: int, n: int) -> T:
        per_group = n_expert // groups
        used = int(self.h.get("expert_group_used_count", 1) or 1)
        by_group = gg.reshape(selection, per_group, groups, n)
        scores = gg.argsort_top_k(by_group, 2)
        scores = gg.get_rows(gg.reshape(by_group, 1, per_group, groups, n), scores)
        scores = gg.sum_rows(gg.reshape(scores, scores.ne[1], scores.ne[2], scores.ne[3]))
        scores = gg.reshape(scores, scores.ne[1], scores.ne[2])
        best = gg.argsort_top_k(scores, used)
        chosen = gg.get_rows(by_group, best)
        chosen = gg.set_rows(gg.like("fill", by_group), chosen, best)
        return gg.reshape(chosen, n_expert, n)

    def shared_expert(self, il: int, cur: T, kind: str) -> T | None:
        if not kind or self.w(il, "ffn_up_shexp") is None:
            return None
        gate = None
        if kind == "silu_div":
            inp = self.mm(il, "ffn_gate_inp_shexp", cur)
            gate = gg.like("div", self.unary(inp), inp)
        out = self.ffn(il, cur, suffix="_shexp")
        if kind == "sigmoid":
            gate = self.unary(self.mm(il, "ffn_gate_inp_shexp", cur))
        return gg.like("mul", out, gate) if gate is not None else out

    def head(self, cur: T, spec: Spec | None = None, op: str = "rms_norm") -> None:
        """The final norm and the logits."""
        spec = spec or Spec()
        cur = self.norm(cur, self.weight("output_norm.weight"), self.weight("output_norm.bias"), op)
        self.finish(cur, spec)

    def finish(self, cur: T, spec: Spec) -> None:
        h = self.h
        cur.flags |= gg.OUTPUT
        if h.arch in ("llama-embed", "gemma-embedding"):
            self.g.expand(cur)
            return
        if h.arch in ("minicpm3", "bitnet"):
            cur = self._special_head(cur)
        else:
            out = self.weight("output.weight")
            if out is None:
                raise MissingTensorError("output.weight")
            cur = gg.mul_mat(out, cur)
        bias = self.weight("output.bias")
        if bias is not None:
            cur = gg.like("add", cur, bias)
        scale = float(h.get("logit_scale", 0.0) or 0.0)
        if spec.logit_scale == "always" or (spec.logit_scale == "key" and scale):
            cur = gg.like("scale", cur)
        if spec.softcap and self._softcap():
            cur = gg.like("scale", self.unary(gg.like("scale", cur)))
        if h.arch == "chameleon":
            # the logits of image tokens are overwritten, in a second copy of all (src/models/chameleon.cpp)
            cur = gg.like("set", cur, gg.clamp(gg.new("f32", CHAMELEON_IMAGE_TOKENS)))
        cur.flags |= gg.OUTPUT
        self.g.expand(cur)

    def _special_head(self, cur: T) -> T:
        if self.h.arch == "minicpm3":
            cur = gg.like("scale", cur)
        name = "token_embd.weight" if self.h.arch == "bitnet" else "output.weight"
        out = self.weight(name)
        if out is None:
            raise MissingTensorError(name)
        return gg.mul_mat(out, cur)

    def _softcap(self) -> bool:
        default = {"gemma3": 0.0, "grok": 0.0}.get(self.h.arch, 30.0)
        return float(self.h.get("final_logit_softcapping", default) or 0.0) != 0.0

    # --- recurrent layers -----------------------------------------------------------------------------------

    def rs(self, il: int) -> tuple[T, T]:
        found = self._rs.get(il)
        if found is None:
            r = gg.new("f32", self.h.n_embd_r * self.n_seqs)
            state = gg.new("f32", self.h.n_embd_s * self.n_seqs)
            r.buf = state.buf = self._cache_device(il)
            found = (r, state)
            self._rs[il] = found
        return found

    def build_rs(self, state: T, size: int, rows: Callable[[T, T], T] | None = None) -> T:
        """build_rs: the states of this batch, after one of them is cleared and the unused ones are moved."""
        g, n = self.g, self.n_seqs
        if self._s_copy is None:
            self._s_copy = self.input("i32", n)
            self._copy_main = gg.view_1d(self._s_copy, n)
            self._copy_extra = gg.view_1d(self._s_copy, 0)
        states = gg.reshape(state, size, n)
        zero = gg.view_1d(states, size)
        g.expand(gg.view_tensor(zero, "scale", [zero]))
        out = rows(states, self._copy_main) if rows is not None else gg.get_rows(states, self._copy_main)
        g.expand(out)
        extra = gg.get_rows(states, self._copy_extra)
        g.expand(gg.cpy(extra, gg.view_2d(state, size, 0, size * 4)))
        return out

    def mamba(self, il: int, cur: T) -> T:
        """build_mamba_layer (Mamba 1)."""
        h, n, ns = self.h, self.n_seq_tokens, self.n_seqs
        d_conv, d_inner, d_state = h.get("ssm.conv_kernel"), h.get("ssm.inner_size"), h.get("ssm.state_size")
        dt_rank = h.get("ssm.time_step_rank")
        r, state = self.rs(il)
        conv = gg.reshape(self.build_rs(r, h.n_embd_r), d_conv - 1, d_inner, ns)
        cur = gg.reshape(cur, cur.ne[0], n, ns)
        xz = self.mm(il, "ssm_in", cur)
        x = gg.view_3d(xz, d_inner, n, ns, xz.nb[1], xz.nb[2])
        z = gg.view_3d(xz, d_inner, n, ns, xz.nb[1], xz.nb[2])
        conv_x = gg.concat(conv, gg.transpose(x), 0)
        last = gg.view_3d(conv_x, d_conv - 1, d_inner, ns, conv_x.nb[1], conv_x.nb[2])
        self.g.expand(gg.cpy(last, gg.view_1d(r, (d_conv - 1) * d_inner * ns)))
        x = gg.op("ssm_conv", (d_inner, n, ns, 1), conv_x, self.need(il, "ssm_conv1d"))
        x = self.unary(gg.like("add", x, self.need(il, "ssm_conv1d", "bias")))
        x_db = self.mm(il, "ssm_x", x)
        dt = gg.view_3d(x_db, dt_rank, n, ns, x_db.nb[1], x_db.nb[2])
        b = gg.view(x_db, (d_state, 1, n, ns), (d_state * 4, x_db.nb[1], x_db.nb[2]))
        c = gg.view(x_db, (d_state, 1, n, ns), (d_state * 4, x_db.nb[1], x_db.nb[2]))
        if h.get("ssm.dt_b_c_rms", False) or self.w(il, "ssm_dt_norm") is not None:
            dt = self.lnorm(dt, il, "ssm_dt_norm")
            b = self.lnorm(b, il, "ssm_b_norm")
            c = self.lnorm(c, il, "ssm_c_norm")
        dt = gg.like("add", gg.mul_mat(self.need(il, "ssm_dt"), dt), self.need(il, "ssm_dt", "bias"))
        cur = x
        x = gg.reshape(x, 1, d_inner, n, ns)
        a = self.need(il, "ssm_a", "")

        def scan(states: T, ids: T) -> T:
            ssm = gg.reshape(states, d_state, 1, d_inner, ns)
            total = d_inner * n * ns + d_state * d_inner * ns
            return gg.op("ssm_scan", (total, 1, 1, 1), ssm, x, dt, a, b, c, ids)

        y_ssm = self.build_rs(state, h.n_embd_s, scan)
        self.g.expand(gg.cpy(gg.view_1d(y_ssm, d_state * d_inner * ns), gg.view_1d(state, d_state * d_inner * ns)))
        y = gg.view_3d(y_ssm, d_inner, n, ns, x.nb[2], x.nb[3])
        y = gg.like("add", y, gg.like("mul", cur, self.need(il, "ssm_d", "")))
        y = gg.glu(gg.cont(z), y)
        cur = self.mm(il, "ssm_out", y)
        return gg.reshape(cur, cur.ne[0], n * ns)

    def mamba2(self, il: int, cur: T) -> T:
        """build_mamba2_layer."""
        h, n, ns = self.h, self.n_seq_tokens, self.n_seqs
        d_conv, d_inner, d_state = h.get("ssm.conv_kernel"), h.get("ssm.inner_size"), h.get("ssm.state_size")
        n_head, n_group = h.get("ssm.time_step_rank"), h.get("ssm.group_count")
        head_dim = d_inner // n_head
        channels = d_inner + 2 * n_group * d_state
        r, state = self.rs(il)
        conv = gg.reshape(self.build_rs(r, h.n_embd_r), d_conv - 1, channels, ns)
        cur = gg.reshape(cur, cur.ne[0], n, ns)
        proj = self.mm(il, "ssm_in", cur)
        z = gg.view(proj, (head_dim, n_head, n, ns), (head_dim * 4, proj.nb[1], proj.nb[2]))
        xbc = gg.view_3d(proj, channels, n, ns, proj.nb[1], proj.nb[2])
        dt = gg.view_3d(proj, n_head, n, ns, proj.nb[1], proj.nb[2])
        conv_x = gg.concat(conv, gg.transpose(xbc), 0)
        last = gg.view_3d(conv_x, d_conv - 1, channels, ns, conv_x.nb[1], conv_x.nb[2])
        self.g.expand(gg.cpy(last, gg.view_1d(r, (d_conv - 1) * channels * ns)))
        xbc = gg.op("ssm_conv", (channels, n, ns, 1), conv_x, self.need(il, "ssm_conv1d"))
        bias = self.w(il, "ssm_conv1d", "bias")
        if bias is not None:
            xbc = gg.like("add", xbc, bias)
        xbc = self.unary(xbc)
        x = gg.view(xbc, (head_dim, n_head, n, ns), (head_dim * 4, xbc.nb[1], xbc.nb[2]))
        b = gg.view(xbc, (d_state, n_group, n, ns), (d_state * 4, xbc.nb[1], xbc.nb[2]))
        c = gg.view(xbc, (d_state, n_group, n, ns), (d_state * 4, xbc.nb[1], xbc.nb[2]))
        dt = gg.like("add", gg.cont(dt), self.need(il, "ssm_dt", "bias"))
        a = self.need(il, "ssm_a", "")

        def scan(states: T, ids: T) -> T:
            ssm = gg.reshape(states, d_state, head_dim, n_head, ns)
            total = d_inner * n * ns + d_state * d_inner * ns
            return gg.op("ssm_scan", (total, 1, 1, 1), ssm, x, dt, a, b, c, ids)

        y_ssm = self.build_rs(state, h.n_embd_s, scan)
        self.g.expand(gg.cpy(gg.view_1d(y_ssm, d_state * d_inner * ns), gg.view_1d(state, d_state * d_inner * ns)))
        row = head_dim * 4
        y = gg.view(y_ssm, (head_dim, n_head, n, ns), (row, n_head * row, n * n_head * row))
        y = gg.like("add", y, gg.like("mul", x, self.need(il, "ssm_d", "")))
        y = gg.glu(gg.cont(z), y)
        if self.w(il, "ssm_norm") is not None:
            y = self.lnorm(gg.reshape(y, d_inner // n_group, n_group, n, ns), il, "ssm_norm")
        y = gg.reshape(y, d_inner, n, ns)
        cur = self.mm(il, "ssm_out", y)
        return gg.reshape(cur, cur.ne[0], n * ns)

    def delta_net(self, q: T, k: T, v: T, g: T, beta: T, state: T) -> tuple[T, T]:
        """build_delta_net_fused."""
        s_v, heads, n, ns = v.ne
        result = gg.op("gated_delta_net", (s_v * heads, n * ns + s_v * ns, 1, 1), q, k, v, g, beta, state)
        row = s_v * 4
        out = gg.view(result, (s_v, heads, n, ns), (row, row * heads, row * heads * n))
        new_state = gg.view(result, (s_v, s_v, heads, ns), (row, row * s_v, row * s_v * heads))
        return out, new_state

    def gated_delta(self, il: int, cur: T) -> T:
        """build_layer_attn_linear of Qwen3-Next and Qwen3.5."""
        h, n, ns = self.h, self.n_seq_tokens, self.n_seqs
        d_inner, k_dim = h.get("ssm.inner_size"), h.get("ssm.state_size")
        k_heads, v_heads = h.get("ssm.group_count"), h.get("ssm.time_step_rank")
        v_dim = d_inner // v_heads
        nexts = h.arch == "qwen3next"
        qkv, z = self._qkvz(il, cur, k_dim, v_dim, k_heads, v_heads)
        if nexts:
            mixed = self.mm(il, "ssm_ba", cur)
            mixed = gg.reshape(mixed, 2 * v_heads // k_heads, k_heads, n, ns)
            size = v_heads // k_heads
            b = gg.view(mixed, (size, k_heads, n, ns), mixed.nb[1:])
            a = gg.view(mixed, (size, k_heads, n, ns), mixed.nb[1:])
            beta = self.unary(gg.cont(b))
            alpha = gg.op("cont", (v_heads, n, ns, 1), a)
            gate = gg.like("add", alpha, self._dt(il))
            gate = gg.like("mul", self.unary(gate), self.need(il, "ssm_a", ""))
            beta = gg.reshape(beta, 1, v_heads, n, ns)
        else:
            beta = self.unary(gg.reshape(self.mm(il, "ssm_beta", cur), 1, v_heads, n, ns))
            alpha = gg.reshape(self.mm(il, "ssm_alpha", cur), v_heads, n, ns)
            gate = self.unary(gg.like("add", alpha, self._dt(il)))
            gate = gg.like("mul", gate, self.need(il, "ssm_a", ""))
        gate = gg.reshape(gate, 1, v_heads, n, ns)
        r, s_all = self.rs(il)
        conv = self.build_rs(r, h.n_embd_r)
        kernel = self.need(il, "ssm_conv1d")
        taps = kernel.ne[0]
        channels = d_inner + 2 * k_heads * k_dim
        conv = gg.reshape(conv, taps - 1, channels, ns)
        conv_in = gg.concat(conv, gg.transpose(qkv), 0)
        last = gg.view_3d(conv_in, taps - 1, channels, ns, conv_in.nb[1], conv_in.nb[2])
        self.g.expand(gg.cpy(last, gg.view_2d(r, (taps - 1) * channels, ns, r.nb[1])))
        state = gg.reshape(self.build_rs(s_all, h.n_embd_s), v_dim, v_dim, v_heads, ns)
        mix = self.unary(gg.op("ssm_conv", (channels, n, ns, 1), conv_in, kernel))
        row = (k_dim * k_heads * 2 + v_dim * v_heads) * 4
        q = gg.view(mix, (k_dim, k_heads, n, ns), (k_dim * 4, row, row * n))
        k = gg.view(mix, (k_dim, k_heads, n, ns), (k_dim * 4, row, row * n))
        v = gg.view(mix, (v_dim, v_heads, n, ns), (v_dim * 4, row, row * n))
        q, k = gg.like("l2_norm", q), gg.like("l2_norm", k)
        if nexts and k_heads != v_heads:
            factor = v_heads // k_heads
            q = gg.op("repeat", (k_dim, factor, k_heads, n * ns), gg.reshape(q, k_dim, 1, k_heads, n * ns))
            k = gg.op("repeat", (k_dim, factor, k_heads, n * ns), gg.reshape(k, k_dim, 1, k_heads, n * ns))
            q, k = gg.reshape(q, k_dim, v_heads, n, ns), gg.reshape(k, k_dim, v_heads, n, ns)
        out, new_state = self.delta_net(q, k, v, gate, beta, state)
        self.g.expand(gg.cpy(new_state, gg.view_2d(s_all, h.n_embd_s, ns, s_all.nb[1])))
        z = gg.reshape(z, v_dim, v_heads, n, ns)
        normed = self.lnorm(out, il, "ssm_norm")
        out = gg.like("mul", normed, self.unary(z))
        out = gg.reshape(out, v_dim * v_heads, n, ns)
        cur = self.mm(il, "ssm_out", out)
        return gg.reshape(cur, h.n_embd, n * ns)

    def _dt(self, il: int) -> T:
        return self.w(il, "ssm_dt", "bias") or self.need(il, "ssm_dt", "")

    def _qkvz(self, il: int, cur: T, k_dim: int, v_dim: int, k_heads: int, v_heads: int) -> tuple[T, T]:
        n, ns = self.n_seq_tokens, self.n_seqs
        if self.w(il, "attn_qkv") is not None:
            qkv = self.mm(il, "attn_qkv", cur)
            return gg.reshape(qkv, qkv.ne[0], n, ns), self.mm(il, "attn_gate", cur)
        mixed = self.mm(il, "ssm_in", cur)
        share = v_dim * v_heads // k_heads
        mixed = gg.reshape(mixed, 2 * k_dim + 2 * share, k_heads, n, ns)
        parts = [gg.view(mixed, (size, k_heads, n, ns), mixed.nb[1:]) for size in (k_dim, k_dim, share, share)]
        z = gg.cont(parts[3])
        q = gg.op("cont", (k_dim * k_heads, n, ns, 1), parts[0])
        k = gg.op("cont", (k_dim * k_heads, n, ns, 1), parts[1])
        v = gg.op("cont", (v_dim * v_heads, n, ns, 1), parts[2])
        return gg.concat(gg.concat(q, k, 0), v, 0), z

    def gated_attention(self, il: int, cur: T) -> T:
        """build_layer_attn of Qwen3-Next and Qwen3.5: Q carries the gate."""
        h, n = self.h, self.n_tokens
        head, heads, kv = h.head_v[il], h.n_head[il], h.n_head_kv[il]
        full = self.mm(il, "attn_q", cur)
        if h.arch == "qwen3next":
            full = gg.reshape(full, head * 2, heads, n)
        step = head * 2 * 4
        q = gg.view_3d(full, head, heads, n, step, step * heads)
        gate = gg.view_3d(full, head, heads, n, step, step * heads)
        q = self.lnorm(q, il, "attn_q_norm")
        k = gg.reshape(self.mm(il, "attn_k", cur), head, kv, n)
        v = gg.reshape(self.mm(il, "attn_v", cur), head, kv, n)
        k = self.lnorm(k, il, "attn_k_norm")
        gate = gg.cont_2d(gate, head * heads, n)
        cur = self.attention(il, self.rope(q), self.rope(k), v, wo=False)
        cur = gg.like("mul", cur, self.unary(gate))
        return self.mm(il, "attn_output", cur)


NO_CACHE = frozenset(
    [
        "bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "eurobert",
        "modern-bert",
        "gemma-embedding",
        "dream",
        "llada",
        "llada-moe",
        "rnd1",
        "llama-embed",
    ]
)
# The architectures that read expert_weights_scale (load_hparams).
_WEIGHT_SCALE = words(
    """
    afmoe deepseek deepseek2 deepseek2-ocr mistral4 glm4moe glm-dsa nemotron_h nemotron_h_moe exaone-moe bailingmoe
    bailingmoe2 dots1 kimi-linear step35
    """
)


def rope_factors_name(s: Any) -> str:
    """The tensor of a model's frequency factors, or "" (llama_model::get_rope_factors, llama-model.cpp:8393)."""
    h, names = s.model.hparams, s.model.names
    if "rope_freqs.weight" in names:
        return "rope_freqs.weight"
    original = h.get("rope.scaling.original_context_length") or h.n_ctx_train
    name = "rope_factors_long.weight" if s.context.n_ctx_seq > original else "rope_factors_short.weight"
    return name if name in names else ""


class MissingTensorError(Exception):
    """The file lacks a tensor that its architecture needs."""


def _atoi(text: str | None) -> int:
    digits = (text or "").strip()
    sign, digits = (-1, digits[1:]) if digits[:1] == "-" else (1, digits)
    number = ""
    for ch in digits:
        if not ch.isdigit():
            break
        number += ch
    return sign * int(number or 0)


def _column(cache: T, total: int) -> T:
    """V as one column of single values (transposed V)."""
    return gg.reshape(cache, 1, total)


@functools.lru_cache(maxsize=4096)
def _weight_shape(dims: tuple[int, ...], name: str) -> tuple[str, tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Type, dimensions and strides."""
    n0, n1, n2, n3 = [*dims, 1, 1, 1][:4]
    t = T("none", name.lower(), (n0, n1, n2, n3))
    return t.ty, t.ne, t.nb


def _weight_tensor(source: Any, where: int | str) -> T:
    ty, ne, nb = _weight_shape(source.dims, source.type)
    t = T("none", ty, ne, [], nb, source.nbytes)
    t.buf = where if isinstance(where, int) and where >= 0 else gg.CPU
    t.weight = True
    return t


def transformer(b: Builder, spec: Spec) -> None:
    """An architecture that Spec describes."""
    h = b.h
    inp = b.embedding()
    if spec.scale_input:
        inp = gg.like("scale", inp)
    if spec.position_embedding and b.weight("position_embd.weight") is not None:
        table = b.weight("position_embd.weight")
        if table is None:  # cannot be: the graph was built with it
            raise AssertionError("table")
        inp = gg.like("add", inp, gg.get_rows(table, b.pos()))
    if spec.embedding_norm:
        inp = b.norm(inp, b.weight("token_embd_norm.weight"), b.weight("token_embd_norm.bias"), "norm", 0)
    layers = h.n_layer - (h.nextn if h.arch in ("glm4", "glm4moe", "bailingmoe2", "exaone-moe") else 0)
    temp = spec.attn_temp and float(h.get("attention.temperature_scale", 0.0) or 0.0) != 0.0
    for il in b.layers(layers):
        inp = _layer(b, spec, il, inp, il == layers - 1, temp)
        if h.arch in ("qwen3vl", "qwen3vlmoe") and il < int(h.get("n_deepstack_layers", 0)):
            deep = b.deepstack_input
            inp = gg.like("add", inp, gg.view_2d(deep, h.n_embd, b.n_tokens, deep.nb[1]))
    if h.arch == "cogvlm":
        b._out_ids = None
    b.head(inp, spec, spec.norm)


def _uses_rope(h: HParams, spec: Spec, il: int) -> bool:
    if spec.rope == "none":
        return False
    if spec.rope == "swa":
        return h.swa[il] or not h.sliding
    if spec.rope == "step":
        if h.arch == "llama4" and not h.sliding:
            return (il + 1) % h.n_layer != 0
        return (il + 1) % 4 != 0
    if spec.rope == "step0":
        return not h.sliding or il % 4 != 0
    if h.arch == "baichuan":
        return h.n_layer == 32
    if h.arch in ("granite", "granitemoe", "granitehybrid"):
        return bool(h.get("rope.scaling.finetuned", True))
    return True


def _self_attention(b: Builder, spec: Spec, il: int, cur: T, temp: bool) -> T:
    h = b.h
    head = h.head_k[il]
    q, k, v = b.qkv(il, cur, head, h.n_head[il], h.n_head_kv[il], flat_norm=spec.qk_norm == "flat")
    attn_in = cur
    op = spec.norm if h.arch not in ("chameleon",) else "norm"
    if spec.qk_norm == "head":
        q, k = _qk_norm(b, il, q, k, op)
    roped = _uses_rope(h, spec, il)
    if roped:
        factors = b.rope_factors(il) if spec.rope_factors and not (h.arch == "step35" and h.swa[il]) else None
        q, k = b.rope(q, factors), b.rope(k, factors)
    elif h.arch == "llama4":
        q = gg.like("mul", q, b.temperature())
    if spec.qk_norm == "late":
        q, k = _qk_norm(b, il, q, k, op)
    if spec.qk_norm == "llama4" and roped and h.n_expert != 128:
        q, k = gg.like("rms_norm", q), gg.like("rms_norm", k)
    if h.arch == "llama" and h.get("use_kq_norm", False):
        q, k = gg.like("rms_norm", q), gg.like("rms_norm", k)
    if temp:
        q = gg.like("mul", q, b.temperature())
    if spec.scale_q:
        q = gg.like("scale", q)
    plain = not spec.attn_gate and not spec.sub_norm
    sinks = b.w(il, "attn_sinks")
    cur = b.attention(il, q, k, v, sinks, wo=plain)
    if spec.attn_gate == "flat":
        cur = gg.like("mul", cur, b.unary(b.mm(il, "attn_gate", attn_in)))
        cur = b.mm(il, "attn_output", cur)
    elif spec.attn_gate == "head":
        if b.w(il, "attn_gate") is not None:
            heads = h.n_head[il]
            gate = gg.reshape(b.unary(b.mm(il, "attn_gate", attn_in)), 1, heads, b.n_tokens)
            cur = gg.like("mul", gg.reshape(cur, h.head_v[il], heads, b.n_tokens), gate)
            cur = gg.reshape(cur, h.head_v[il] * heads, b.n_tokens)
        cur = b.mm(il, "attn_output", cur)
    elif spec.sub_norm:
        cur = b.mmb(il, "attn_output", b.lnorm(cur, il, "attn_sub_norm"))
    if plain and b.w(il, "attn_output", "scale") is not None and h.arch in ("llama", "qwen3", "qwen3moe"):
        scale = b.w(il, "attn_output", "scale")
        cur = gg.like("mul", cur, scale)
    return cur


def _qk_norm(b: Builder, il: int, q: T, k: T, op: str) -> tuple[T, T]:
    if b.w(il, "attn_q_norm") is not None:
        q = b.lnorm(q, il, "attn_q_norm", op)
    if b.w(il, "attn_k_norm") is not None:
        k = b.lnorm(k, il, "attn_k_norm", op)
    return q, k


def _layer_norm(b: Builder, spec: Spec, il: int, cur: T, kind: str) -> T:
    if spec.plain_norm:
        return gg.like(spec.norm, cur)
    return b.lnorm(cur, il, kind, spec.norm)


def _layer(b: Builder, spec: Spec, il: int, inp: T, last: bool, temp: bool) -> T:
    h = b.h
    residual = inp
    early_logits = b.mm(il, "ffn_gate_inp", inp) if h.arch == "smallthinker" else None
    if h.arch == "deci" and h.n_head[il] == 0:
        cur = inp
    else:
        cur = _layer_norm(b, spec, il, inp, "attn_norm") if spec.pre_norm else inp
    normed = cur
    if h.arch == "falcon" and b.w(il, "attn_norm_2") is not None:
        cur = b.lnorm(inp, il, "attn_norm_2", spec.norm)
    if h.arch == "deci" and h.n_head_kv[il] == 0:
        if h.n_head[il] > 0:
            cur = b.mm(il, "attn_output", cur)
    else:
        cur = _self_attention(b, spec, il, cur, temp)
    if spec.rows_after_norm and spec.post_norm:
        cur = b.lnorm(cur, il, "post_attention_norm")
    if last and h.arch != "cogvlm":
        cur, residual = b.rows(cur), b.rows(residual)
        if spec.parallel == "attn" or (h.arch == "stablelm" and b.w(il, "ffn_norm") is None):
            normed = b.rows(normed)
        if early_logits is not None:
            early_logits = b.rows(early_logits)
    if h.arch == "deci" and h.n_ff[il] == 0:
        return inp  # the layer is left out: the input of the next one stays
    scaled = spec.residual_scale == "always" or (
        spec.residual_scale == "key" and float(h.get("residual_scale", 0.0) or 0.0) != 0.0
    )
    if spec.parallel and (spec.parallel == "attn" or bool(h.get("use_parallel_residual", True))):
        ffn_in = normed if spec.parallel == "attn" else b.lnorm(residual, il, "ffn_norm", spec.norm)
        out = b.ffn(il, ffn_in, spec.ffn)
        if h.arch in ("command-r", "cohere2", "gptneox"):
            return gg.like("add", gg.like("add", out, residual), cur)
        if h.arch == "phi2":
            return gg.like("add", gg.like("add", cur, out), residual)
        return gg.like("add", gg.like("add", out, cur), residual)
    if spec.post_norm and not spec.rows_after_norm:
        name = "attn_output_norm" if h.arch == "grok" else "post_attention_norm"
        cur = b.lnorm(cur, il, name)
    if scaled:
        cur = gg.like("scale", cur)
    ffn_inp = cur if h.arch == "deci" and h.n_head[il] == 0 else gg.like("add", cur, residual)
    if h.arch == "arctic":
        return _arctic(b, il, ffn_inp, residual)
    if h.arch == "stablelm" and b.w(il, "ffn_norm") is None:
        cur = normed
    elif spec.ffn_norm:
        cur = _layer_norm(b, spec, il, ffn_inp, spec.ffn_norm)
    else:
        cur = ffn_inp
    cur = _feed_forward(b, spec, il, cur, early_logits)
    if spec.post_norm:
        cur = b.norm(cur, b.w(il, "post_ffw_norm"), None, "rms_norm", il if h.arch in _POST_NORM_NAMED else -1)
    if scaled:
        cur = gg.like("scale", cur)
    if h.arch in ("phi3", "phimoe"):
        return gg.like("add", ffn_inp, cur)
    return gg.like("add", cur, ffn_inp)


_POST_NORM_NAMED = frozenset(["glm4", "afmoe", "plamo3", "grok"])


def _arctic(b: Builder, il: int, ffn_inp: T, residual: T) -> T:
    dense = b.ffn(il, b.lnorm(ffn_inp, il, "ffn_norm"))
    dense = gg.like("add", dense, ffn_inp)
    experts = b.moe(il, b.lnorm(residual, il, "ffn_norm_exps"))
    return gg.like("add", experts, dense)


def _feed_forward(b: Builder, spec: Spec, il: int, cur: T, logits: T | None) -> T:
    h = b.h
    if b.w(il, "ffn_gate_inp") is None:
        if spec.sub_norm:
            return b.mm(il, "ffn_down", b.lnorm(b.ffn(il, cur, spec.ffn, down=False), il, "ffn_sub_norm"))
        return b.ffn(il, cur, spec.ffn, spec.fused_up)
    norm_w = spec.norm_w == "true" or (spec.norm_w == "key" and bool(h.get("expert_weights_norm", False)))
    gating = spec.gating or int(h.get("expert_gating_func", 0)) or _DEFAULT_GATING.get(h.arch, SOFTMAX)
    if h.arch == "grovemoe":
        return _grove(b, il, cur)
    if h.arch == "hunyuan-moe":
        shared = b.shared_expert(il, cur, spec.shared)
        out = b.moe(il, cur, spec.moe_act, norm_w, gating, spec.probs_bias)
    else:
        out = b.moe(il, cur, spec.moe_act, norm_w, gating, spec.probs_bias, logits)
        shared = b.shared_expert(il, cur, spec.shared)
    if shared is not None:
        return gg.like("add", out, shared)
    if h.arch == "grok" and b.w(il, "ffn_up") is not None:
        return gg.like("scale", gg.like("add", b.ffn(il, cur, "gelu"), out))
    return out


_DEFAULT_GATING = {"glm4moe": SIGMOID, "glm-dsa": SIGMOID, "afmoe": SIGMOID, "step35": SIGMOID}


def _grove(b: Builder, il: int, cur: T) -> T:
    h = b.h
    chunks = h.n_expert // max(int(h.get("experts_per_group", 1)), 1)
    probs = b.mm(il, "ffn_gate_inp", cur)
    cur = b.moe(il, cur, logits=probs)
    more = b.moe(il, cur, logits=probs, kinds="chexps", n_expert=chunks, n_used=min(chunks, h.n_expert_used))
    return gg.like("add", cur, gg.like("scale", more))


# --- architectures of their own -----------------------------------------------------------------------------


def _slice(t: T) -> T:
    return gg.view_2d(t, t.ne[0], t.ne[1], t.nb[1])


def _per_layer_inputs(b: Builder, inp: T, width: int) -> T:
    """build_inp_per_layer and project_per_layer_inputs of Gemma 3n and 4."""
    h, n = b.h, b.n_tokens
    tokens = b.input("i32", n)
    table = b.weight("per_layer_token_embd.weight")
    proj = b.weight("per_layer_model_proj.weight")
    if table is None:  # cannot be: the graph was built with it
        raise AssertionError("table")
    if proj is None:  # cannot be: the graph was built with it
        raise AssertionError("proj")
    per = gg.reshape(gg.get_rows(table, tokens), width, h.n_layer, n)
    per = gg.like("scale", per)
    b.g.expand(per)
    cur = gg.like("scale", gg.mul_mat(proj, inp))
    cur = gg.reshape(cur, width, h.n_layer, n)
    cur = b.norm(cur, b.weight("per_layer_proj_norm.weight"))
    per = gg.like("scale", gg.like("add", cur, per))
    return gg.cont(gg.permute(per, 0, 2, 1, 3))


def gemma4(b: Builder) -> None:
    h, n = b.h, b.n_tokens
    inp = gg.like("scale", b.embedding())
    per_layer = None
    if b.weight("per_layer_token_embd.weight") is not None:
        per_layer = _per_layer_inputs(b, inp, h.n_embd_per_layer)
    for il in b.layers(h.n_layer):
        last = il == h.n_layer - 1
        head, heads, kv = h.head_k[il], h.n_head[il], h.n_head_kv[il]
        cur = b.lnorm(inp, il, "attn_norm")
        factors = None if h.swa[il] else b.rope_factors(il)
        q = gg.reshape(b.mm(il, "attn_q", cur), head, heads, n)
        q = b.rope(b.lnorm(q, il, "attn_q_norm"), factors)
        if il < h.kv_from_start:
            k_raw = b.mm(il, "attn_k", cur)
            v_raw = b.mm(il, "attn_v", cur) if b.w(il, "attn_v") is not None else k_raw
            k = gg.reshape(k_raw, head, kv, n)
            v = gg.like("rms_norm", gg.reshape(v_raw, head, kv, n))
            k = b.rope(b.lnorm(k, il, "attn_k_norm"), factors)
            cur = b.attention(il, q, k, v)
        else:
            cur = b.attention(il, q, None, None)
        if last:
            cur, inp = b.rows(cur), b.rows(inp)
        cur = b.lnorm(cur, il, "post_attention_norm")
        attn_out = gg.like("add", cur, inp)
        if b.w(il, "ffn_gate_inp") is not None:
            mlp = b.ffn(il, b.lnorm(attn_out, il, "ffn_norm"), "gelu")
            mlp = b.lnorm(mlp, il, "post_ffw_norm_1")
            moe = b.lnorm(attn_out, il, "pre_ffw_norm_2")
            tmp = gg.like("scale", gg.like("rms_norm", attn_out))
            tmp = gg.like("mul", tmp, b.need(il, "ffn_gate_inp", "scale"))
            logits = gg.mul_mat(b.need(il, "ffn_gate_inp"), tmp)
            moe = b.moe(il, moe, "gelu", logits=logits)
            moe = b.lnorm(moe, il, "post_ffw_norm_2")
            cur = gg.like("add", mlp, moe)
        else:
            cur = b.ffn(il, b.lnorm(attn_out, il, "ffn_norm"), "gelu")
        cur = b.norm(cur, b.w(il, "post_ffw_norm"))
        cur = gg.like("add", cur, attn_out)
        if per_layer is not None:
            pe_in = cur
            cur = b.unary(b.mm(il, "inp_gate", cur))
            this = _slice(per_layer)
            if last:
                this = b.rows(this)
            cur = b.mm(il, "proj", gg.like("mul", cur, this))
            cur = gg.like("add", pe_in, b.lnorm(cur, il, "post_norm"))
        scale = b.w(il, "layer_output_scale")
        if scale is not None:
            cur = gg.like("mul", cur, scale)
        inp = cur
    b.head(inp, Spec(softcap=True))


def gemma3n(b: Builder) -> None:
    h, n = b.h, b.n_tokens
    altup, width = 4, h.n_embd
    inp = gg.like("scale", b.embedding())
    per_layer = _per_layer_inputs(b, inp, 256)

    def magnitude(x: T) -> T:
        return gg.like("sqrt", gg.sum_rows(gg.like("sqr", x)))

    target = magnitude(inp)
    repeated = gg.op("repeat", (width, n, altup - 1, 1), inp)
    proj = b.weight("altup_proj.weight")
    unembd = b.weight("altup_unembd_proj.weight")
    if proj is None or unembd is None:
        raise MissingTensorError("altup_proj.weight")
    added = gg.mul_mat(proj, repeated)
    added = gg.like("div", gg.like("mul", added, target), magnitude(added))
    inp = gg.concat(inp, added, 2)
    for il in b.layers(h.n_layer):
        inp = _gemma3n_layer(b, il, inp, per_layer, altup)
    target = magnitude(_slice(inp))
    alt = gg.view_3d(inp, width, n, altup - 1, inp.nb[1], inp.nb[2])
    out = gg.mul_mat(unembd, alt)
    out = gg.like("div", gg.like("mul", out, target), magnitude(out))
    cur = _slice(inp)
    for _count in range(altup - 1):
        cur = gg.like("add", cur, _slice(out))
    cur = b.rows(gg.like("scale", cur))
    b.head(cur, Spec(softcap=True))


def _gemma3n_router(b: Builder, il: int, x: T) -> T:
    cur = gg.like("scale", b.lnorm(x, il, "altup_router_norm"))
    return b.unary(gg.mul_mat(b.need(il, "altup_router"), cur))


def _gemma3n_layer(b: Builder, il: int, inp: T, per_layer: T, altup: int) -> T:
    h, n, width = b.h, b.n_tokens, b.h.n_embd
    head, heads, kv = h.head_k[il], h.n_head[il], h.n_head_kv[il]
    coefs = b.mm(il, "altup_predict_coef", _gemma3n_router(b, il, _slice(inp)))
    coefs = gg.reshape(coefs, altup, altup, n)
    pred = gg.mul_mat(gg.cont(gg.permute(inp, 1, 2, 0, 3)), coefs)
    pred = gg.cont(gg.permute(pred, 2, 0, 1, 3))
    pred = gg.like("add", pred, inp)
    active = _slice(pred)
    cur = b.lnorm(active, il, "attn_norm")
    laurel = b.mm(il, "laurel_r", b.mm(il, "laurel_l", cur))
    laurel = gg.like("add", b.lnorm(laurel, il, "laurel_post_norm"), cur)
    if il < h.kv_from_start:
        q, k, v = b.qkv(il, cur, head, heads, kv)
        q, k = _qk_norm(b, il, q, k, "rms_norm")
        v = gg.like("rms_norm", v)
        cur = b.attention(il, b.rope(q), b.rope(k), v)
    else:
        q = b.lnorm(gg.reshape(b.mm(il, "attn_q", cur), head, heads, n), il, "attn_q_norm")
        cur = b.attention(il, b.rope(q), None, None)
    cur = b.lnorm(cur, il, "post_attention_norm")
    cur = gg.like("add", cur, active)
    attn = gg.like("scale", gg.like("add", cur, laurel))
    cur = b.lnorm(attn, il, "ffn_norm")
    up, gate = b.mm(il, "ffn_up", cur), b.mm(il, "ffn_gate", cur)
    if il < 10:
        mean = gg.T("mean", "f32", (1, n, 1, 1), [gate])
        spread = gg.sum_rows(gg.like("sqr", gg.like("sub", gate, mean)))
        std = gg.like("sqrt", gg.like("scale", spread))
        gate = b.unary(gg.like("sub", gate, gg.like("add", mean, gg.like("scale", std))))
    cur = b.mm(il, "ffn_down", gg.like("mul", up, b.unary(gate)))
    cur = b.norm(cur, b.w(il, "post_ffw_norm"))
    gated = gg.like("add", cur, attn)
    innovation = gg.like("sub", gated, _slice(pred))
    modalities = _gemma3n_router(b, il, gated)
    coefs = gg.like("scale", b.mm(il, "altup_correct_coef", modalities))
    coefs = gg.op("cont", (1, n, altup, 1), gg.transpose(coefs))
    innovation = gg.op("repeat", (width, n, altup, 1), innovation)
    corrected = gg.like("add", gg.like("mul", innovation, coefs), pred)
    first = gg.like("mul", _slice(corrected), b.need(il, "altup_correct_scale"))
    first = b.unary(b.mm(il, "inp_gate", first))
    first = b.mm(il, "proj", gg.like("mul", first, _slice(per_layer)))
    first = b.lnorm(first, il, "post_norm")
    rest = gg.view_3d(corrected, width, n, altup - 1, corrected.nb[1], corrected.nb[2])
    rest = gg.like("add", rest, first)
    return gg.concat(_slice(corrected), rest, 2)


def _mla_parts(b: Builder, il: int, cur: T, q: T, width: int, rank: int, rope: int) -> tuple[T, T, T, T]:
    n, heads = b.n_tokens, b.h.n_head[il]
    q_nope = gg.view_3d(q, width - rope, heads, n, width * 4, width * 4 * heads)
    q_pe = gg.view_3d(q, rope, heads, n, width * 4, width * 4 * heads)
    kv = gg.mul_mat(b.need(il, "attn_kv_a_mqa"), cur)
    row = (rank + rope) * 4
    compressed = gg.view_2d(kv, rank, n, row)
    k_pe = gg.view_3d(kv, rope, 1, n, row, row)
    return q_nope, q_pe, compressed, k_pe


def _mha_from_mla(b: Builder, il: int, q_nope: T, q_pe: T, compressed: T, k_pe: T, v_width: int) -> tuple[T, T, T]:
    """K and V decompressed: files without the MLA tensors, MiniCPM3, PLM."""
    n, heads = b.n_tokens, b.h.n_head[il]
    nope, rope = q_nope.ne[0], q_pe.ne[0]
    kv = gg.mul_mat(b.need(il, "attn_kv_b"), compressed)
    row = (nope + v_width) * 4
    k_nope = gg.view_3d(kv, nope, heads, n, row, row * heads)
    v = gg.cont(gg.view_3d(kv, v_width, heads, n, row, row * heads))
    q = gg.concat(q_nope, q_pe, 0)
    k = gg.concat(k_nope, gg.op("repeat", (rope, heads, n, 1), k_pe), 0)
    return q, k, v


def deepseek2(b: Builder) -> None:
    h, n = b.h, b.n_tokens
    inp = b.embedding()
    temp = float(h.get("attention.temperature_scale", 0.0) or 0.0) != 0.0
    width = h.head_k_mla or h.head_k[0]
    v_width = h.head_v_mla or h.head_v[0]
    rank = int(h.get("attention.kv_lora_rank", 0) or 0)
    rope = int(h.get("rope.dimension_count", 0) or h.head_k[0])
    layers = h.n_layer - h.nextn
    gating = int(h.get("expert_gating_func", 0)) or _DEFAULT_GATING.get(h.arch, SOFTMAX)
    if not h.get("expert_gating_func") and h.arch == "deepseek2" and h.n_vocab == 154880 and h.n_layer in (47, 48):
        gating = SIGMOID
    norm_w = bool(h.get("expert_weights_norm", False))
    for il in b.layers(layers):
        residual = inp
        cur = b.lnorm(inp, il, "attn_norm")
        if h.arch == "deepseek2-ocr":
            q, k, v = b.qkv(il, cur, h.head_k[il], h.n_head[il], h.n_head_kv[il])
            cur = b.attention(il, b.rope(q), b.rope(k), v)
        else:
            if b.w(il, "attn_q") is None:
                q = b.norm(b.mm(il, "attn_q_a", cur), b.w(il, "attn_q_a_norm"), None, "rms_norm", il)
                q = b.mm(il, "attn_q_b", q)
            else:
                q = b.mm(il, "attn_q", cur)
            q_nope, q_pe, compressed, k_pe = _mla_parts(b, il, cur, q, width, rank, rope)
            q_pe, k_pe = b.rope(q_pe), b.rope(k_pe)
            compressed = b.lnorm(compressed, il, "attn_kv_a_norm")
            if h.is_mla:
                absorbed = gg.mul_mat(b.need(il, "attn_k_b"), gg.permute(q_nope, 0, 2, 1, 3))
                q = gg.concat(gg.permute(absorbed, 0, 2, 1, 3), q_pe, 0)
                compressed = gg.reshape(compressed, rank, 1, n)
                k = gg.concat(compressed, k_pe, 0)
                if temp:
                    q = gg.like("mul", q, b.temperature())
                cur = b.attention_k(il, q, k, rank, b.need(il, "attn_v_b"))
            else:
                q, k, v = _mha_from_mla(b, il, q_nope, q_pe, compressed, k_pe, v_width)
                if temp:
                    q = gg.like("mul", q, b.temperature())
                cur = b.attention(il, q, k, v)
        if il == layers - 1:
            cur, residual = b.rows(cur), b.rows(residual)
        ffn_inp = gg.like("add", cur, residual)
        cur = b.lnorm(ffn_inp, il, "ffn_norm")
        if b.w(il, "ffn_gate_inp") is None:
            cur = b.ffn(il, cur)
        else:
            out = b.moe(il, cur, norm_w=norm_w, gating=gating, probs_bias=True)
            shared = b.shared_expert(il, cur, "plain")
            cur = gg.like("add", out, shared) if shared is not None else out
        inp = gg.like("add", cur, ffn_inp)
    b.head(inp)


def minicpm3(b: Builder) -> None:
    """MiniCPM3 and PLM: MLA without its cache."""
    h = b.h
    mini = h.arch == "minicpm3"
    inp = b.embedding()
    if mini:
        inp = gg.like("scale", inp)
    rank = int(h.get("attention.kv_lora_rank", 0) or 0)
    rope = int(h.get("rope.dimension_count", 0) or h.head_k[0])
    for il in b.layers(h.n_layer):
        residual = inp
        factors = b.rope_factors(il) if mini else None
        cur = b.lnorm(inp, il, "attn_norm")
        if mini:
            q = b.mm(il, "attn_q_b", b.lnorm(b.mm(il, "attn_q_a", cur), il, "attn_q_a_norm"))
        else:
            q = b.mm(il, "attn_q", cur)
        q_nope, q_pe, compressed, k_pe = _mla_parts(b, il, cur, q, h.head_k[il], rank, rope)
        compressed = b.lnorm(compressed, il, "attn_kv_a_norm")
        q_pe, k_pe = b.rope(q_pe, factors), b.rope(k_pe, factors)
        q, k, v = _mha_from_mla(b, il, q_nope, q_pe, compressed, k_pe, h.head_v[il])
        cur = b.attention(il, q, k, v)
        if il == h.n_layer - 1:
            cur, residual = b.rows(cur), b.rows(residual)
        if mini:
            cur = gg.like("scale", cur)
        ffn_inp = gg.like("add", cur, residual)
        cur = b.ffn(il, b.lnorm(ffn_inp, il, "ffn_norm"), "silu" if mini else "relu_sqr")
        if mini:
            cur = gg.like("scale", cur)
        inp = gg.like("add", cur, ffn_inp)
    b.head(inp)


def mamba(b: Builder) -> None:
    h = b.h
    inp = b.embedding()
    for il in b.layers(h.n_layer):
        cur = b.lnorm(inp, il, "attn_norm")
        cur = b.mamba2(il, cur) if h.arch == "mamba2" else b.mamba(il, cur)
        if il == h.n_layer - 1:
            cur, inp = b.rows(cur), b.rows(inp)
        inp = gg.like("add", cur, inp)
    b.head(inp)


def jamba(b: Builder) -> None:
    h = b.h
    inp = b.embedding()
    for il in b.layers(h.n_layer):
        cur = b.lnorm(inp, il, "attn_norm")
        if h.n_head_kv[il] == 0:
            cur = b.mamba(il, cur)
        else:
            q, k, v = b.qkv(il, cur, h.head_k[il], h.n_head[il], h.n_head_kv[il])
            cur = b.attention(il, q, k, v)
        if il == h.n_layer - 1:
            cur, inp = b.rows(cur), b.rows(inp)
        ffn_inp = gg.like("add", inp, cur)
        cur = b.lnorm(ffn_inp, il, "ffn_norm")
        cur = b.ffn(il, cur) if b.w(il, "ffn_gate_inp") is None else b.moe(il, cur, norm_w=False)
        inp = gg.like("add", ffn_inp, cur)
    b.head(inp)


def _plamo2_mamba(b: Builder, il: int, cur: T) -> T:
    h, n, ns, g = b.h, b.n_seq_tokens, b.n_seqs, b.g
    d_conv, d_inner, d_state = h.get("ssm.conv_kernel"), h.get("ssm.inner_size"), h.get("ssm.state_size")
    heads = h.get("ssm.time_step_rank")
    head = d_inner // heads
    dt_dim = max(64, h.n_embd // 16)
    r, state = b.rs(il)
    conv = gg.reshape(b.build_rs(r, h.n_embd_r), d_conv - 1, d_inner, ns)
    cur = gg.reshape(cur, cur.ne[0], n, ns)
    zx = gg.permute(b.mm(il, "ssm_in", cur), 0, 2, 1, 3)
    zx = gg.op("cont", (head * 2, heads, n, ns), zx)
    x = gg.view(zx, (head, heads, n, ns), zx.nb[1:])
    x = gg.op("cont", (head * heads, n, ns, 1), x)
    z = gg.view(zx, (head, heads, n, ns), zx.nb[1:])
    conv_x = gg.concat(conv, gg.transpose(x), 0)
    last = gg.view_3d(conv_x, d_conv - 1, d_inner, ns, conv_x.nb[1], conv_x.nb[2])
    g.expand(gg.cpy(last, gg.view_1d(r, (d_conv - 1) * d_inner * ns)))
    x = b.unary(gg.op("ssm_conv", (d_inner, n, ns, 1), conv_x, b.need(il, "ssm_conv1d")))
    bcdt = b.mm(il, "ssm_x", x)
    b_in = gg.view_3d(bcdt, d_state, n, ns, bcdt.nb[1], bcdt.nb[2])
    c_in = gg.view_3d(bcdt, d_state, n, ns, bcdt.nb[1], bcdt.nb[2])
    dt = gg.view_3d(bcdt, dt_dim, n, ns, bcdt.nb[1], bcdt.nb[2])
    b_in = b.norm(b_in, b.w(il, "ssm_b_norm", "") or b.w(il, "ssm_b_norm"), None, "rms_norm", il)
    c_in = b.norm(c_in, b.w(il, "ssm_c_norm", "") or b.w(il, "ssm_c_norm"), None, "rms_norm", il)
    dt = b.norm(dt, b.w(il, "ssm_dt_norm", "") or b.w(il, "ssm_dt_norm"), None, "rms_norm", il)
    dt = gg.like("add", b.mm(il, "ssm_dt", dt), b.need(il, "ssm_dt", "bias"))
    a = gg.reshape(b.need(il, "ssm_a", ""), 1, heads)
    x = gg.view(x, (head, heads, n, ns), (head * 4, d_inner * 4, d_inner * n * 4))
    b_in = gg.view(b_in, (d_state, 1, n, ns), (d_state * 4, b_in.nb[1], b_in.nb[2]))
    c_in = gg.view(c_in, (d_state, 1, n, ns), (d_state * 4, c_in.nb[1], c_in.nb[2]))

    def scan(states: T, ids: T) -> T:
        ssm = gg.reshape(states, d_state, head, heads, ns)
        return gg.op("ssm_scan", (d_inner * n * ns + d_state * d_inner * ns, 1, 1, 1), ssm, x, dt, a, b_in, c_in, ids)

    y_ssm = b.build_rs(state, h.n_embd_s, scan)
    g.expand(gg.cpy(gg.view_1d(y_ssm, d_inner * d_state * ns), gg.view_1d(state, d_inner * d_state * ns)))
    y = gg.view(y_ssm, (head, heads, n, ns), (head * 4, d_inner * 4, d_inner * n * 4))
    y = gg.like("add", y, gg.like("mul", x, gg.reshape(b.need(il, "ssm_d", ""), 1, heads)))
    y = gg.glu(gg.cont(z), y)
    y = gg.view_3d(y, d_inner, n, ns, y.nb[2], y.nb[3])
    cur = b.mm(il, "ssm_out", y)
    return gg.reshape(cur, cur.ne[0], n * ns)


def plamo2(b: Builder) -> None:
    h = b.h
    inp = b.embedding()
    for il in b.layers(h.n_layer):
        cur = b.lnorm(inp, il, "attn_norm")
        if h.recurrent[il]:
            cur = _plamo2_mamba(b, il, cur)
        else:
            head, heads, kv = h.head_k[il], h.n_head[il], h.n_head_kv[il]
            qkv = b.mm(il, "attn_qkv", cur)
            q, k, v = (gg.view_3d(qkv, head, count, b.n_tokens, head * 4, qkv.nb[1]) for count in (heads, kv, kv))
            q = b.rope(b.lnorm(q, il, "attn_q_norm"))
            k = b.rope(b.lnorm(k, il, "attn_k_norm"))
            cur = b.attention(il, q, k, v)
        cur = b.norm(cur, b.w(il, "post_attention_norm", "") or b.w(il, "post_attention_norm"), None, "rms_norm", il)
        residual = gg.like("add", cur, inp)
        cur = b.ffn(il, b.lnorm(residual, il, "ffn_norm"), fused=True)
        cur = b.norm(cur, b.w(il, "post_ffw_norm", "") or b.w(il, "post_ffw_norm"), None, "rms_norm", il)
        if il == h.n_layer - 1:
            cur, residual = b.rows(cur), b.rows(residual)
        inp = gg.like("add", cur, residual)
    b.head(inp)


def granite_hybrid(b: Builder) -> None:
    h = b.h
    spec = Spec(rope_factors=True, shared="plain", logit_scale="key")
    inp = b.embedding()
    scaled = float(h.get("residual_scale", 0.0) or 0.0) != 0.0
    for il in b.layers(h.n_layer):
        residual = inp
        cur = b.lnorm(inp, il, "attn_norm")
        cur = b.mamba2(il, cur) if h.recurrent[il] else _self_attention(b, spec, il, cur, False)
        if il == h.n_layer - 1:
            cur, residual = b.rows(cur), b.rows(residual)
        if scaled:
            cur = gg.like("scale", cur)
        ffn_inp = gg.like("add", cur, residual)
        cur = _feed_forward(b, spec, il, b.lnorm(ffn_inp, il, "ffn_norm"), None)
        if scaled:
            cur = gg.like("scale", cur)
        inp = gg.like("add", cur, ffn_inp)
    b.head(inp, spec)


def falcon_h1(b: Builder) -> None:
    h = b.h
    inp = b.embedding()
    for il in b.layers(h.n_layer):
        cur = b.lnorm(inp, il, "attn_norm")
        q, k, v = b.qkv(il, cur, h.head_k[il], h.n_head[il], h.n_head_kv[il])
        attn = b.attention(il, b.rope(q), b.rope(k), v)
        ssm = b.mamba2(il, b.lnorm(inp, il, "attn_norm"))
        residual = gg.like("add", gg.like("add", attn, ssm), inp)
        if il == h.n_layer - 1:
            residual = b.rows(residual)
        cur = b.ffn(il, b.lnorm(residual, il, "ffn_norm"))
        inp = gg.like("add", cur, residual)
    b.head(inp)


def nemotron_h(b: Builder) -> None:
    h = b.h
    inp = b.embedding()
    for il in b.layers(h.n_layer):
        residual = inp
        cur = b.lnorm(inp, il, "attn_norm")
        if h.recurrent[il]:
            cur = b.mamba2(il, cur)
        elif h.n_ff[il] == 0:
            q, k, v = b.qkv(il, cur, h.head_k[il], h.n_head[il], h.n_head_kv[il])
            cur = b.attention(il, q, k, v)
        elif b.w(il, "ffn_gate_inp") is None:
            cur = b.ffn(il, cur, "relu_sqr")
        else:
            latent = cur
            if b.w(il, "ffn_latent_down") is not None:
                latent = gg.mul_mat(b.need(il, "ffn_latent_down"), cur)
            logits = b.mm(il, "ffn_gate_inp", cur)
            norm_w = bool(h.get("expert_weights_norm", False))
            out = b.moe(il, latent, "relu_sqr", norm_w, SIGMOID, True, logits)
            if b.w(il, "ffn_latent_up") is not None:
                out = gg.mul_mat(b.need(il, "ffn_latent_up"), out)
            cur = gg.like("add", out, b.ffn(il, cur, "relu_sqr", suffix="_shexp"))
        if il == h.n_layer - 1:
            cur, residual = b.rows(cur), b.rows(residual)
        inp = gg.like("add", cur, residual)
    b.head(inp)


def lfm2(b: Builder) -> None:
    h, n, ns = b.h, b.n_seq_tokens, b.n_seqs
    cur = b.embedding()
    taps = int(h.get("shortconv.l_cache")) - 1
    for il in b.layers(h.n_layer):
        previous = cur
        cur = b.lnorm(cur, il, "attn_norm")
        if h.recurrent[il]:
            cur = gg.reshape(cur, cur.ne[0], n, ns)
            bcx = b.mm(il, "shortconv.in_proj", cur)
            size = bcx.ne[0] // 3
            bb, cc, xx = (gg.view_3d(bcx, size, n, ns, bcx.nb[1], bcx.nb[2]) for count in range(3))
            bx = gg.transpose(gg.like("mul", bb, xx))
            r = b.rs(il)[0]
            conv = gg.reshape(b.build_rs(r, h.n_embd_r), taps, h.n_embd, ns)
            bx = gg.concat(conv, bx, 0)
            new = gg.view_3d(bx, taps, bx.ne[1], bx.ne[2], bx.nb[1], bx.nb[2])
            b.g.expand(gg.cpy(new, gg.view_1d(r, taps * bx.ne[1] * bx.ne[2])))
            out = gg.op("ssm_conv", (h.n_embd, n, ns, 1), bx, b.need(il, "shortconv.conv"))
            cur = b.mm(il, "shortconv.out_proj", gg.like("mul", cc, out))
            cur = gg.reshape(cur, cur.ne[0], n * ns)
        else:
            q, k, v = b.qkv(il, cur, h.head_v[il], h.n_head[il], h.n_head_kv[il])
            q, k = _qk_norm(b, il, q, k, "rms_norm")
            cur = b.attention(il, b.rope(q), b.rope(k), v)
        if il == h.n_layer - 1:
            cur, previous = b.rows(cur), b.rows(previous)
        cur = gg.like("add", previous, cur)
        normed = b.lnorm(cur, il, "ffn_norm")
        if b.w(il, "ffn_gate_inp") is None:
            out = b.ffn(il, normed)
        else:
            gating = int(h.get("expert_gating_func", 0)) or SIGMOID
            out = b.moe(il, normed, norm_w=True, gating=gating, probs_bias=True)
        cur = gg.like("add", cur, out)
    name = "output_norm.weight" if b.weight("output_norm.weight") is not None else "token_embd_norm.weight"
    cur = b.norm(cur, b.weight(name))
    b.finish(cur, Spec())


def qwen35(b: Builder) -> None:
    """Qwen3-Next, Qwen3.5 and Qwen3.6."""
    h = b.h
    inp = b.embedding()
    for il in b.layers(h.n_layer):
        residual = inp
        cur = b.lnorm(inp, il, "attn_norm")
        b.g.expand(cur)
        cur = b.gated_delta(il, cur) if h.recurrent[il] else b.gated_attention(il, cur)
        if il == h.n_layer - 1:
            cur, residual = b.rows(cur), b.rows(residual)
        residual = gg.like("add", cur, residual)
        cur = b.lnorm(residual, il, "post_attention_norm")
        if b.w(il, "ffn_gate_inp") is None:
            cur = b.ffn(il, cur)
        else:
            out = b.moe(il, cur)
            shared = b.shared_expert(il, cur, "sigmoid")
            cur = gg.like("add", out, shared) if shared is not None else out
        inp = gg.like("add", cur, residual)
    b.head(inp)


def kimi_linear(b: Builder) -> None:
    h, n, nt, ns = b.h, b.n_seq_tokens, b.n_tokens, b.n_seqs
    inp = b.embedding()
    head, heads, d_conv = int(h.get("kda.head_dim")), h.n_head[0], int(h.get("ssm.conv_kernel"))
    inner = head * heads
    width, v_width = h.head_k_mla, h.head_v_mla
    rank = int(h.get("attention.kv_lora_rank"))
    rope = int(h.get("rope.dimension_count"))
    gating = int(h.get("expert_gating_func", 0)) or SOFTMAX
    for il in b.layers(h.n_layer):
        residual = inp
        cur = b.lnorm(inp, il, "attn_norm")
        b.g.expand(cur)
        if h.recurrent[il]:
            r, s_all = b.rs(il)
            conv_all = b.build_rs(r, h.n_embd_r)
            step = (d_conv - 1) * 4
            sides = []
            for kind in ("q", "k", "v"):
                state = gg.view_3d(conv_all, d_conv - 1, inner, ns, step, h.n_embd_r * 4)
                x = gg.reshape(gg.mul_mat(b.need(il, f"attn_{kind}"), cur), inner, n, ns)
                conv_x = gg.concat(state, gg.transpose(x), 0)
                last = gg.view_3d(conv_x, d_conv - 1, inner, ns, conv_x.nb[1], conv_x.nb[2])
                b.g.expand(gg.cpy(last, gg.view_3d(r, d_conv - 1, inner, ns, step, h.n_embd_r * 4)))
                kernel = gg.reshape(b.need(il, f"ssm_conv1d_{kind}"), d_conv, inner)
                out = gg.op("ssm_conv", (inner, n, ns, 1), conv_x, kernel)
                out = b.unary(gg.reshape(out, inner, nt))
                sides.append(gg.reshape(out, head, heads, n, ns))
            g1 = gg.mul_mat(b.need(il, "ssm_f_b"), gg.mul_mat(b.need(il, "ssm_f_a"), cur))
            g1 = b.unary(gg.like("add", g1, b.need(il, "ssm_dt", "bias")))
            g1 = gg.reshape(g1, head, heads, nt)
            g1 = gg.like("mul", g1, gg.reshape(b.need(il, "ssm_a", ""), 1, heads))
            g1 = gg.reshape(g1, head, heads, n, ns)
            beta = gg.mul_mat(b.need(il, "ssm_beta"), cur)
            beta = b.unary(gg.reshape(beta, 1, heads, n, ns))
            cur = gg.reshape(cur, cur.ne[0], n, ns)
            state = gg.reshape(b.build_rs(s_all, h.n_embd_s), head, head, heads, ns)
            q, k = gg.like("l2_norm", sides[0]), gg.like("l2_norm", sides[1])
            out, new_state = b.delta_net(q, k, sides[2], g1, beta, state)
            out = gg.cont(out)
            b.g.expand(gg.cpy(new_state, gg.view_1d(s_all, h.n_embd_s * ns)))
            flat = gg.reshape(cur, cur.ne[0], nt)
            g2 = gg.mul_mat(b.need(il, "ssm_g_b"), gg.mul_mat(b.need(il, "ssm_g_a"), flat))
            g2 = gg.reshape(g2, head, heads, nt)
            normed = b.lnorm(gg.reshape(out, head, heads, nt), il, "ssm_norm")
            gated = gg.cont_2d(gg.like("mul", normed, b.unary(g2)), inner, nt)
            cur = gg.mul_mat(b.need(il, "attn_output"), gated)
        else:
            q = gg.mul_mat(b.need(il, "attn_q"), cur)
            q_nope, q_pe, compressed, k_pe = _mla_parts(b, il, cur, q, width, rank, rope)
            compressed = b.lnorm(compressed, il, "attn_kv_a_norm")
            if b.w(il, "attn_k_b") is not None and b.w(il, "attn_v_b") is not None:
                absorbed = gg.mul_mat(b.need(il, "attn_k_b"), gg.permute(q_nope, 0, 2, 1, 3))
                q = gg.concat(gg.permute(absorbed, 0, 2, 1, 3), q_pe, 0)
                compressed = gg.reshape(compressed, rank, 1, nt)
                cur = b.attention_k(il, q, gg.concat(compressed, k_pe, 0), rank, b.need(il, "attn_v_b"))
            else:
                q = gg.reshape(q, width, heads, nt)
                k, v = _mha_from_mla(b, il, q_nope, q_pe, compressed, k_pe, v_width)[1:]
                cur = b.attention(il, q, k, v)
        if il == h.n_layer - 1:
            cur, residual = b.rows(cur), b.rows(residual)
        ffn_inp = gg.like("add", cur, residual)
        cur = b.lnorm(ffn_inp, il, "ffn_norm")
        if b.w(il, "ffn_gate_inp") is None:
            cur = b.ffn(il, cur)
        else:
            norm_w = bool(h.get("expert_weights_norm", True))
            out = b.moe(il, cur, norm_w=norm_w, gating=gating, probs_bias=True)
            shared = b.shared_expert(il, cur, "plain")
            cur = gg.like("add", out, shared) if shared is not None else out
        inp = gg.like("add", cur, ffn_inp)
    b.head(inp)


def _shift(b: Builder, il: int, count: int) -> T:
    r = b.rs(il)[0]
    return gg.reshape(b.build_rs(r, b.h.n_embd_r), b.h.n_embd, count, b.n_seqs)


def _shifted(b: Builder, shift: T, cur: T) -> T:
    n, ns = b.n_seq_tokens, b.n_seqs
    return gg.concat(shift, gg.view_3d(cur, b.h.n_embd, n - 1, ns, cur.nb[1], cur.nb[2]), 1)


def _store_shift(b: Builder, il: int, shift: T, count: int) -> None:
    r = b.rs(il)[0]
    total = b.h.n_embd * b.n_seqs * count
    b.g.expand(gg.cpy(gg.view_1d(shift, total), gg.view_1d(r, b.h.n_embd_r * b.n_seqs)))


def _lerp(b: Builder, il: int, sx: T, kind: str, cur: T) -> T:
    return gg.like("add", gg.like("mul", sx, b.need(il, kind)), cur)


def _rwkv6_time_mix(b: Builder, il: int, cur: T, x_prev: T) -> T:
    h, nt, ns = b.h, b.n_tokens, b.n_seqs
    width, head = h.n_embd, int(h.get("wkv.head_size"))
    heads, kv = width // head, h.n_head_kv[il]
    qrwkv = b.w(il, "time_mix_first") is None
    sx = gg.reshape(gg.like("sub", x_prev, cur), width, nt)
    cur = gg.reshape(cur, width, nt)
    xxx = _lerp(b, il, sx, "time_mix_lerp_x", cur)
    w1, w2 = b.need(il, "time_mix_w1"), b.need(il, "time_mix_w2")
    xxx = gg.reshape(b.unary(gg.mul_mat(w1, xxx)), w1.ne[1] // 5, 1, 5, nt)
    xxx = gg.cont(gg.permute(xxx, 0, 1, 3, 2))
    xxx = gg.mul_mat(gg.reshape(w2, w2.ne[0], w2.ne[1], 1, 5), xxx)
    fused = b.w(il, "time_mix_lerp_fused")
    if fused is not None:
        sx3, cur3 = gg.reshape(sx, width, 1, nt), gg.reshape(cur, width, 1, nt)
        xxx = gg.like("add", gg.like("mul", gg.like("add", xxx, fused), sx3), cur3)
        xs = [gg.view_2d(xxx, width, nt, xxx.nb[1]) for count in range(5)]
    else:
        xs = []
        for kind in "wkvrg":
            one = gg.view_2d(xxx, width, nt, xxx.nb[1])
            one = gg.like("mul", gg.like("add", one, b.need(il, f"time_mix_lerp_{kind}")), sx)
            xs.append(gg.like("add", one, cur))
    xw, xk, xv, xr, xg = xs
    r, k, v = b.mmb(il, "time_mix_receptance", xr), b.mmb(il, "time_mix_key", xk), b.mmb(il, "time_mix_value", xv)
    gate = b.unary(b.mm(il, "time_mix_gate", xg))
    if kv not in (0, heads):
        k = gg.op("repeat", (head, heads // kv, kv, nt), gg.reshape(k, head, 1, kv, nt))
        v = gg.op("repeat", (head, heads // kv, kv, nt), gg.reshape(v, head, 1, kv, nt))
    k, v, r = (gg.reshape(t, head, heads, nt) for t in (k, v, r))
    w = gg.mul_mat(b.need(il, "time_mix_decay_w2"), b.unary(gg.mul_mat(b.need(il, "time_mix_decay_w1"), xw)))
    w = gg.like("add", w, b.need(il, "time_mix_decay"))
    w = gg.reshape(b.unary(b.unary(b.unary(w))), head, heads, nt)
    if qrwkv:
        k = gg.like("sub", k, gg.like("mul", k, w))
    s_all = b.rs(il)[1]
    state = b.build_rs(s_all, h.n_embd_s)
    shape = (width, nt + head * ns, 1, 1)
    if qrwkv:
        out = gg.op("gated_linear_attn", shape, k, v, r, w, state)
    else:
        out = gg.op("rwkv_wkv6", shape, k, v, r, b.need(il, "time_mix_first"), w, state)
    cur = gg.view_1d(out, width * nt)
    b.g.expand(gg.cpy(gg.view_1d(out, width * head * ns), gg.view_1d(s_all, h.n_embd_s * ns)))
    if not qrwkv:
        cur = gg.like("norm", gg.reshape(cur, head, heads, nt))
        cur = _ln(b, il, gg.reshape(cur, width, nt))
    else:
        cur = gg.reshape(cur, width, nt)
    cur = b.mm(il, "time_mix_output", gg.like("mul", cur, gate))
    return gg.reshape(cur, width, b.n_seq_tokens, ns)


def _ln(b: Builder, il: int, cur: T) -> T:
    cur = gg.like("mul", cur, b.need(il, "time_mix_ln"))
    return gg.like("add", cur, b.need(il, "time_mix_ln", "bias"))


def _rwkv7_time_mix(b: Builder, il: int, cur: T, x_prev: T, first: list[T]) -> T:
    h, nt, n, ns = b.h, b.n_tokens, b.n_seq_tokens, b.n_seqs
    width, head = h.n_embd, int(h.get("wkv.head_size"))
    heads = width // head
    gating = b.w(il, "time_mix_g1") is not None and b.w(il, "time_mix_g2") is not None
    sx = gg.op("repeat", (width, n, ns, 6 if gating else 5), gg.like("sub", x_prev, cur))
    xxx = gg.like("add", gg.like("mul", sx, b.need(il, "time_mix_lerp_fused")), cur)
    xs = [gg.view_2d(xxx, width, nt, xxx.nb[1]) for count in range(6)]
    xr, xw, xk, xv, xa, xg = xs

    def lora(second: str, one: str, x: T, act: bool = False) -> T:
        inner = gg.mul_mat(b.need(il, one), x)
        return gg.mul_mat(b.need(il, second), b.unary(inner) if act else inner)

    r = b.mm(il, "time_mix_receptance", xr)
    w = gg.like("add", lora("time_mix_w2", "time_mix_w1", xw, True), b.need(il, "time_mix_w0"))
    w = b.unary(gg.like("scale", b.unary(w)))
    k, v = b.mm(il, "time_mix_key", xk), b.mm(il, "time_mix_value", xv)
    if not first:
        first.append(v)
    else:
        mix = b.unary(gg.like("add", lora("time_mix_v2", "time_mix_v1", xv), b.need(il, "time_mix_v0")))
        v = gg.like("add", v, gg.like("mul", gg.like("sub", first[0], v), mix))
    gate = lora("time_mix_g2", "time_mix_g1", xg, False) if gating else None
    if gating:
        gate = gg.mul_mat(b.need(il, "time_mix_g2"), b.unary(gg.mul_mat(b.need(il, "time_mix_g1"), xg)))
    a = b.unary(gg.like("add", lora("time_mix_a2", "time_mix_a1", xa), b.need(il, "time_mix_a0")))
    kk = gg.like("l2_norm", gg.reshape(gg.like("mul", k, b.need(il, "time_mix_k_k")), head, heads, nt))
    ka = gg.like("mul", k, b.need(il, "time_mix_k_a"))
    k = gg.like("add", k, gg.like("sub", gg.like("mul", a, ka), ka))
    r, w, k, v, a = (gg.reshape(t, head, heads, nt) for t in (r, w, k, v, a))
    s_all = b.rs(il)[1]
    state = b.build_rs(s_all, h.n_embd_s)
    shape = (width, nt + head * ns, 1, 1)
    out = gg.op("rwkv_wkv7", shape, r, w, k, v, b.unary(kk), gg.like("mul", kk, a), state)
    cur = gg.view_1d(out, width * nt)
    b.g.expand(gg.cpy(gg.view_1d(out, width * head * ns), gg.view_1d(s_all, h.n_embd_s * ns)))
    if b.w(il, "time_mix_ln") is not None and b.w(il, "time_mix_ln", "bias") is not None:
        cur = gg.like("norm", gg.reshape(cur, head, heads, nt))
        cur = _ln(b, il, gg.reshape(cur, width, nt))
    else:
        cur = gg.reshape(cur, width, nt)
    r_k = gg.reshape(b.need(il, "time_mix_r_k"), head, heads)
    rk = gg.sum_rows(gg.like("mul", gg.like("mul", k, r), r_k))
    cur = gg.like("add", cur, gg.reshape(gg.like("mul", v, rk), width, nt))
    if gate is not None:
        cur = gg.like("mul", cur, gate)
    return gg.reshape(b.mm(il, "time_mix_output", cur), width, n, ns)


def rwkv(b: Builder) -> None:
    """RWKV 6 and 7, and their hybrids with Qwen2's feed-forward (rwkv6qwen2, arwkv7)."""
    h, n, nt, ns = b.h, b.n_seq_tokens, b.n_tokens, b.n_seqs
    seven = h.arch in ("rwkv7", "arwkv7")
    own_ffn = h.arch in ("rwkv6", "rwkv7")
    op = "norm" if own_ffn else "rms_norm"
    inp = b.embedding()
    if own_ffn:
        inp = b.norm(inp, b.weight("token_embd_norm.weight"), b.weight("token_embd_norm.bias"), "norm", 0)
    first: list[T] = []
    rescale = int(h.get("rescale_every_n_layers", 0) or 0)
    for il in b.layers(h.n_layer):
        last = il == h.n_layer - 1
        inp = gg.reshape(inp, h.n_embd, n, ns)
        count = 2 if own_ffn else 1
        shift = _shift(b, il, count)
        att_shift = gg.view_3d(shift, h.n_embd, 1, ns, shift.nb[1], shift.nb[2]) if own_ffn else shift
        ffn_shift = gg.view_3d(shift, h.n_embd, 1, ns, shift.nb[1], shift.nb[2]) if own_ffn else shift
        att = b.lnorm(inp, il, "attn_norm", op)
        x_prev = _shifted(b, att_shift, att)
        cur = _rwkv7_time_mix(b, il, att, x_prev, first) if seven else _rwkv6_time_mix(b, il, att, x_prev)
        tail = gg.view_3d(att, h.n_embd, 1, ns, att.nb[1], att.nb[2])
        if own_ffn:
            ffn_inp = gg.like("add", cur, inp)
            normed = b.lnorm(ffn_inp, il, "attn_norm_2", op)
            x_prev = _shifted(b, ffn_shift, normed)
            new = gg.concat(tail, gg.view_3d(normed, h.n_embd, 1, ns, normed.nb[1], normed.nb[2]), 1)
            _store_shift(b, il, new, 2)
            ffn_inp, normed, x_prev = (gg.reshape(t, h.n_embd, nt) for t in (ffn_inp, normed, x_prev))
            if last:
                ffn_inp, normed, x_prev = b.rows(ffn_inp), b.rows(normed), b.rows(x_prev)
            sx = gg.like("sub", x_prev, normed)
            key = gg.like("sqr", b.unary(b.mm(il, "channel_mix_key", _lerp(b, il, sx, "channel_mix_lerp_k", normed))))
            if seven:
                cur = b.mm(il, "channel_mix_value", key)
            else:
                xr = _lerp(b, il, sx, "channel_mix_lerp_r", normed)
                gate = b.unary(b.mm(il, "channel_mix_receptance", xr))
                cur = gg.like("mul", gate, b.mm(il, "channel_mix_value", key))
        else:
            _store_shift(b, il, tail, 1)
            ffn_inp = gg.reshape(gg.like("add", cur, inp), h.n_embd, nt)
            if last:
                ffn_inp = b.rows(ffn_inp)
            cur = b.ffn(il, b.lnorm(ffn_inp, il, "ffn_norm"))
        cur = gg.like("add", cur, ffn_inp)
        if rescale and (il + 1) % rescale == 0 and h.arch == "rwkv6":
            cur = gg.like("scale", cur)
        inp = cur
    b.head(inp, None, op)


def bert(b: Builder) -> None:
    """The encoders without a cache; an estimate from above, for the fleet runs no embedding models."""
    h = b.h
    inp = b.embedding()
    for il in b.layers(h.n_layer):
        cur = b.lnorm(inp, il, "attn_norm", "norm")
        q, k, v = b.qkv(il, cur, h.head_k[il], h.n_head[il], h.n_head_kv[il])
        cur = gg.like("add", b.attention(il, q, k, v), inp)
        normed = b.norm(cur, None, None, "norm")
        inp = gg.like("add", b.ffn(il, normed, "gelu"), cur)
    cur = b.norm(inp, None, None, "norm")
    cur.flags |= gg.OUTPUT
    b.g.expand(cur)


BUILDERS: Mapping[str, Callable[[Builder], None]] = {
    "gemma4": gemma4,
    "gemma3n": gemma3n,
    "deepseek2": deepseek2,
    "deepseek2-ocr": deepseek2,
    "mistral4": deepseek2,
    "glm-dsa": deepseek2,
    "minicpm3": minicpm3,
    "plm": minicpm3,
    "mamba": mamba,
    "mamba2": mamba,
    "jamba": jamba,
    "plamo2": plamo2,
    "granitehybrid": granite_hybrid,
    "falcon-h1": falcon_h1,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "lfm2": lfm2,
    "lfm2moe": lfm2,
    "qwen3next": qwen35,
    "qwen35": qwen35,
    "qwen35moe": qwen35,
    "kimi-linear": kimi_linear,
    "rwkv6": rwkv,
    "rwkv6qwen2": rwkv,
    "rwkv7": rwkv,
    "arwkv7": rwkv,
}


def is_known(h: HParams) -> bool:
    """Whether the architecture's graph is modelled here."""
    return h.arch in BUILDERS or h.arch in SPECS or h.arch in NO_CACHE


def build(s: Any, kept: Sequence[int] = ()) -> Builder:
    """The graph of a setup with all or some of its layers."""
    b = Builder(s, kept)
    arch = b.h.arch
    if arch in BUILDERS:
        BUILDERS[arch](b)
    elif arch in SPECS:
        transformer(b, SPECS[arch])
    else:
        bert(b)
    return b


def count_layers(h: HParams) -> int:
    """Layers that the graph has: those that predict further tokens (NextN) are left out."""
    return h.n_layer - (h.nextn if h.arch in _WITHOUT_NEXTN else 0)


_WITHOUT_NEXTN = frozenset(
    ["glm4", "glm4moe", "bailingmoe2", "exaone-moe", "deepseek2", "deepseek2-ocr", "mistral4", "glm-dsa"]
)
# What these ask of a layer's number, besides whether it is the last.
_NUMBERED: Mapping[str, Callable[[HParams, int], Any]] = {
    "gemma3n": lambda h, il: il < 10,
    "qwen3vl": lambda h, il: il < int(h.get("n_deepstack_layers", 0)),
    "qwen3vlmoe": lambda h, il: il < int(h.get("n_deepstack_layers", 0)),
    "rwkv6": lambda h, il: (il + 1) % max(int(h.get("rescale_every_n_layers", 0) or 0), 1),
    "rwkv7": lambda h, il: il > 0,
    "arwkv7": lambda h, il: il > 0,
}


class LayerKind(NamedTuple):
    """What a layer's part of the graph depends on; layers with equal ones have equal parts."""

    own: Any
    shares: Any  # of that what decides which tensors of the whole graph it uses: masks, positions
    place: Any  # of that where its operations run
    # whether all of it is on one device, so that nothing but its input is copied for it
    plain: bool = True
    # whether its operations come with those of the next layer, because nothing asks for them earlier
    silent: bool = False
    # whether the last of them, which always do, use a tensor of the whole graph
    late: bool = False


class _Tensors(NamedTuple):
    """The tensors of a layer as far as the graph tells them apart, in numbers that are equal for equal ones."""

    alike: int
    names: int  # the names alone, with the device of each
    devices: frozenset[int]
    attends: bool


def _tensor_kinds(s: Any) -> list[_Tensors]:
    """For each layer what its tensors are to the graph and where they lie."""
    memo = s.model.memo
    exact = any(not d.is_cuda for d in s.placement.devices)  # Vulkan judges tensors by their size
    key = ("tensor kinds", s.weights_key)
    result: list[_Tensors] | None = memo.get(key)
    if result is None:
        devices, where = s.placement.devices, s.weights.where
        numbers = memo.setdefault("tensor kinds", {})
        result = []
        for layer, tensors in zip(s.placement.layers, s.model.by_layer):
            alike = []
            names = []
            for kind, t in tensors.items():
                owner = where.get(t.name)
                if owner is None:
                    continue
                device = owner if isinstance(owner, int) else gg.CPU
                # a type matters where a device cannot use it, and where the tensor may be copied to one
                sized = exact or (devices and (device < 0 or device != layer)) or t.type in _NOT_MULTIPLIED
                alike.append((kind, t.dims, device, t.type if sized else ""))
                names.append((kind, device))
            result.append(
                _Tensors(
                    numbers.setdefault(tuple(alike), len(numbers)),
                    numbers.setdefault(tuple(names), len(numbers)),
                    frozenset(device for kind, device in names),
                    any(kind.startswith("attn_q") for kind, device in names),
                )
            )
        memo[key] = result
    return result


def signatures(s: Any, n_layer: int) -> list[LayerKind]:
    """For each layer everything that its part of the graph depends on."""
    h: HParams = s.model.hparams
    p = s.placement
    tensors = _tensor_kinds(s)
    lists = [v for v in h.lists() if len(v) >= h.n_layer]
    number = _NUMBERED.get(h.arch)
    rope = SPECS[h.arch].rope if h.arch in SPECS else ""
    caches = {layer.il: (cache.kind, layer[1:]) for cache in s.caches for layer in cache.layers}
    kv_here = s.options["kv_offload"] and min(p.layers) >= 0
    kinds = []
    for il in range(n_layer):
        weights, cache = tensors[il], caches.get(il)
        place = (p.layers[il], weights.devices, tuple(il in layers for layers in s.fa_unsupported))
        shares = (
            place,
            weights.names,
            cache[0] if cache else None,
            h.swa[il],
            h.recurrent[il],
            tuple(v[il] for v in lists),
            number(h, il) if number else None,
            (il + 1) % 4 == 0 or (rope == "step0" and il % 4 == 0) if rope.startswith("step") else None,
        )
        own = (
            shares,
            weights.alike,
            cache,
            h.head_k[il],
            h.head_v[il],
            h.n_head[il],
            h.n_head_kv[il],
            h.n_ff[il],
            il == n_layer - 1,
        )
        kinds.append(
            LayerKind(
                own,
                shares,
                place,
                plain=not p.devices or (kv_here and weights.devices == {p.layers[il]} and not any(place[2])),
                silent=not h.recurrent[il] and not weights.attends,
                late=bool(h.n_embd_per_layer) or number is not None,
            )
        )
    return kinds


_NOT_MULTIPLIED = frozenset(["F64", "I8", "I16", "I32", "I64", "Q8_1", "TQ1_0", "TQ2_0"])


def fold(layers: Sequence[LayerKind], plain: bool) -> gg.Fold | None:
    """Leave out layers that others stand for, or None where there are none.

    What happens in the buffers while a layer runs follows from its kind, from the layer in front of it, whose last
    operations come with its own, and from where the one behind it runs. A layer that computes nothing by itself
    leaves all of its operations to the one behind it: then those of the layers in front of both are among them too.
    Where not all layers are plain, copies for one layer are made while another one runs: then two layers in front
    count, and the kind of the one behind.

    Beyond this there is only what layers share, as masks: it is made for the first layer that uses it and freed after
    the last one. These stay, and so do those that their operations reach into; of all others one of each kind and
    neighbours is enough.
    """

    def numbered(values: Sequence[Any]) -> tuple[int, ...]:
        number: dict[Any, int] = {}
        return tuple([number.setdefault(value, len(number)) for value in values])

    kinds = numbered([layer.own for layer in layers])
    silent = tuple([layer.silent for layer in layers])
    if not plain:
        return _fold(kinds, kinds, kinds, silent, plain)
    shares = numbered([layer.shares for layer in layers])
    late = any(layer.late for layer in layers)
    return _fold(kinds, shares, numbered([layer.place for layer in layers]), silent, plain, late)


@functools.lru_cache(maxsize=256)
def _fold(
    kinds: tuple[int, ...],
    shares: tuple[int, ...],
    places: tuple[int, ...],
    silent: tuple[bool, ...],
    plain: bool,
    late: bool = False,
) -> gg.Fold | None:
    """Fold layers of these kinds; what a late layer is the first to use may be made with the next one's operations."""
    count = len(kinds)
    before = 1 if plain else 2
    # the layers whose operations may come with the next layer's
    tails: list[tuple[int, ...]] = [(-1,)]
    for il, nothing in enumerate(silent):
        length = max(len(tails[-1]) if nothing else 0, before - 1)
        tails.append((*tails[-1][len(tails[-1]) - length :], kinds[il]))
    windows = [(tails[il], kinds[il], places[il + 1] if il + 1 < count else -1) for il in range(count)]
    first = {shares.index(share) for share in shares}
    last = {count - 1 - shares[::-1].index(share) for share in shares}
    inner = [
        last.isdisjoint(range(il - len(tails[il]), il + 1))
        and first.isdisjoint(range(il - len(tails[il]) - late, il + 1))
        for il in range(count)
    ]
    left = Counter(windows[il] for il in range(count) if inner[il])
    kept = [0]
    il = 0
    while il < count - 1:
        # Go on with the farthest layer that fits behind this one, if others stand for those between.
        end = after = il + 1
        spared = left.copy()
        while after < count - 1 and inner[after] and spared[windows[after]] > 1:
            spared[windows[after]] -= 1
            after += 1
            if tails[after] == tails[il + 1] and places[after] == places[il + 1]:
                end = after
        for skipped in range(il + 1, end):
            left[windows[skipped]] -= 1
        kept.append(end)
        il = end
    if len(kept) == count:
        return None
    stands: dict[Any, int] = {}
    alike = []
    for position, il in enumerate(kept):
        if inner[il] and stands.setdefault(windows[il], position) != position:
            alike.append((stands[windows[il]], position))
    own = {il: position for position, il in enumerate(kept)}
    order = [own[il] if il in own else stands[windows[il]] for il in range(count)]
    return gg.Fold(tuple(kept), tuple(order), tuple(alike), tuple([not silent[il] for il in kept]), plain)
