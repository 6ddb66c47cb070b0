# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused, what is not accepted, what is warned of, and what is an error."""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _builds, _memory

from . import oracle

GIB = 1 << 30
MATRIX = json.loads((oracle.DATA / "kv_matrix.json").read_text())
LLAMA = "llama31-8b-real"
GEMMA4 = "gemma4-26b-a4b-real"
E4B = "gemma4-e4b-real"


def gpu(backend="cuda", gib=1024, **more):
    return {"name": "GPU0", "backend": backend, "total_bytes": gib * GIB, "free_bytes": gib * GIB, **more}


def budget(model=LLAMA, devices=(), build=_builds.DEFAULT_BUILD, env=None, **options):
    return _memory.memory_budget(oracle.loaded(model), devices, {"parallel": 1, **options}, build, env)


def pairs(table):
    return [tuple(pair.split("/")) for pair in MATRIX["cuda_hip"][table]]


@pytest.mark.parametrize("all_quants", [False, True], ids=["default", "all_quants"])
@pytest.mark.parametrize("backend", ["cuda", "rocm"])
def test_pairs_on_cuda_and_hip_match_the_matrix(backend, all_quants):
    table = MATRIX["cuda_hip"]["fa_all_quants" if all_quants else "default"]
    for pair, verdict in table.items():
        type_k, type_v = pair.split("/")
        if {"f32"} & {type_k, type_v}:
            continue
        asked = {"cache_type_k": type_k, "cache_type_v": type_v, "ctx_size": 4096, "fa_all_quants": all_quants}
        env = {"TURBO_AUTO_ASYMMETRIC": "0", "TURBO_LAYER_ADAPTIVE": "0"}
        on = budget(devices=[gpu(backend)], env=env, flash_attn="on", **asked)
        auto = budget(devices=[gpu(backend)], env=env, **asked)
        assert on["starts"], pair
        assert on["accepted"] == (verdict == "ok"), pair
        if verdict == "unsupported":
            quantized_v = _builds.get_build(_builds.DEFAULT_BUILD).cache_types[type_v].quantized
            assert auto["starts"] == (not quantized_v), pair
            assert "CPU" in on["reason"]
        else:
            assert auto["starts"], pair
            assert auto["accepted"] == (verdict == "ok"), pair


def test_pairs_on_vulkan_match_the_matrix():
    for pair, verdict in MATRIX["vulkan"].items():
        type_k, type_v = pair.split("/")
        b = budget(devices=[gpu("vulkan")], cache_type_k=type_k, cache_type_v=type_v, ctx_size=4096, flash_attn="on")
        assert b["accepted"] == (verdict == "ok"), pair
    b = budget(devices=[gpu("vulkan")], cache_type_k="q8_0", cache_type_v="turbo4", ctx_size=4096)
    assert not b["starts"]
    assert "q8_0/turbo4" in b["reason"]
    assert "The nearest pair that runs is" in b["reason"]


def test_quantized_v_without_flash_attention_does_not_start():
    b = budget(flash_attn="off", cache_type_v="q8_0", ctx_size=4096)
    assert not b["starts"]
    assert not b["accepted"]
    assert "flash_attn" in b["reason"]


def test_turbo_turns_flash_attention_on():
    b = budget(flash_attn="off", cache_type_k="turbo3", cache_type_v="turbo3", ctx_size=4096)
    assert b["starts"]
    assert any("flash_attn" in w for w in b["warnings"])


def test_e4b_over_two_gpus_aborts_in_the_scheduler():
    two = [dict(gpu(), name="CUDA0"), dict(gpu(), name="CUDA1")]
    b = budget(E4B, two, ctx_size=32768, tensor_split="3,1")
    assert not b["starts"]
    assert "30 inputs" in b["reason"]
    assert budget(E4B, two, ctx_size=32768, split_mode="none")["starts"]


def test_an_unknown_architecture_is_refused_and_estimated():
    header = copy.deepcopy(oracle.header(LLAMA))
    header["architecture"] = "llama99"
    header["metadata"]["general.architecture"] = "llama99"
    header["metadata"] = {k.replace("llama.", "llama99.", 1): v for k, v in header["metadata"].items()}
    b = _memory.memory_budget(header, options={"ctx_size": 4096})
    assert not b["starts"]
    assert "llama99" in b["reason"]
    assert b["devices"]["host"]["compute"] > 0


def test_too_little_memory_is_not_accepted():
    b = budget(devices=[gpu(gib=4)], ctx_size=131072)
    assert not b["accepted"]
    assert "too little" in b["reason"]


def test_warnings_name_the_silent_policies():
    four = _memory.memory_budget(oracle.loaded(GEMMA4), options={"ctx_size": 32768})
    assert any("four slots" in w for w in four["warnings"])
    adaptive = budget(cache_type_k="q8_0", cache_type_v="turbo2", ctx_size=4096)
    assert any("Boundary V" in w for w in adaptive["warnings"])
    assert any("turbo2" in w for w in adaptive["warnings"])


@pytest.mark.parametrize(
    ("backend", "cache_type", "warned"),
    [("vulkan", "turbo3", True), ("vulkan", "q8_0", False), ("rocm", "turbo3", False), (None, "turbo3", False)],
)
def test_turbo3_on_vulkan_is_warned_of(backend, cache_type, warned):
    b = budget(
        devices=[gpu(backend)] if backend else [], cache_type_k=cache_type, cache_type_v=cache_type, ctx_size=4096
    )
    assert b["starts"]
    assert any("turbo3 on Vulkan" in w and "#88" in w for w in b["warnings"]) is warned


def test_auto_asymmetric_is_warned_of_and_can_be_turned_off():
    model = next(n for n in sorted({row["model"] for row in oracle.rows()}) if _ratio(n) >= 6)
    asked = {"cache_type_k": "turbo4", "cache_type_v": "turbo4", "ctx_size": 4096}
    b = budget(model, **asked)
    assert b["caches"][0]["type_k"] == "q8_0"
    assert any("auto-asymmetric" in w for w in b["warnings"])
    assert budget(model, env={"TURBO_AUTO_ASYMMETRIC": "0"}, **asked)["caches"][0]["type_k"] == "turbo4"


def _ratio(name):
    h = oracle.loaded(name).hparams
    return h.n_head[0] // h.n_head_kv[0] if h.n_head_kv[0] and h.attention_layers() else 0


def test_other_is_itemised_with_sources():
    b = budget(devices=[gpu()], ctx_size=32768, cache_type_k="q8_0", cache_type_v="q8_0", mmproj_bytes=1000)
    assert all(note["source"] and note["bytes"] > 0 for note in b["notes"])
    for name, part in b["devices"].items():
        assert part["other"] == sum(n["bytes"] for n in b["notes"] if n["device"] == name and n["counted"])
        assert part["total"] == sum(v for k, v in part.items() if k != "total")
    assert b["total"] == sum(part["total"] for part in b["devices"].values())
    kinds = {note["what"] for note in b["notes"]}
    assert {"context of the driver", "multimodal projector", "prompt cache, at most"} <= kinds
    assert any("f16 copy" in kind for kind in kinds)


def test_upstream_has_no_turbo_types_and_smaller_masks():
    with pytest.raises(ValueError, match="turbo4"):
        budget(build="upstream-b11434", cache_type_k="turbo4")
    fork = budget(ctx_size=32768)
    up = budget(ctx_size=32768, build="upstream-b11434")
    assert up["devices"]["host"]["kv"] == fork["devices"]["host"]["kv"]
    assert up["devices"]["host"]["compute"] < fork["devices"]["host"]["compute"]
    assert up["build"]["name"] == "upstream-b11434"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ctx": 1}, ["unknown option 'ctx'", "ctx_size"]),
        ({"ctx_size": "many"}, ["ctx_size", "'many'", "whole number"]),
        ({"ctx_size": True}, ["ctx_size", "True"]),
        ({"ctx_size": -1}, ["ctx_size", "-1", "0 or more"]),
        ({"parallel": 0}, ["parallel", "0"]),
        ({"n_gpu_layers": -2}, ["n_gpu_layers", "-2"]),
        ({"cache_type_k": "q3_0"}, ["cache_type_k", "'q3_0'", "turbo4"]),
        ({"kv_unified": "yes"}, ["kv_unified", "true or false"]),
        ({"flash_attn": "maybe"}, ["flash_attn", "on, off or auto"]),
        ({"split_mode": "rows"}, ["split_mode", "'rows'"]),
        ({"tensor_split": "a,b"}, ["tensor_split", "3,1"]),
        ({"tensor_split": [-1]}, ["tensor_split", "negative"]),
        ({"override_tensor": "exps"}, ["override_tensor", "REGEX=BUFFER"]),
        ({"override_tensor": "(=CPU"}, ["override_tensor", "regular expression"]),
        ({"override_tensor": "token=CUDA7"}, ["CUDA7", "CPU"]),
        ({"program": "llama-cli"}, ["llama-cli", "llama-fit-params"]),
        ({"batch_size": 0, "ubatch_size": 0}, ["batch_size", "2048"]),
    ],
)
def test_bad_options_are_errors_that_say_what_is_right(options, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as e:
        _memory.memory_budget(oracle.loaded(LLAMA), options=options)
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize(
    ("devices", "word"),
    [
        ("CUDA0", "list"),
        (["CUDA0"], "device 0"),
        ([{"backend": "metal"}], "metal"),
        ([{"backend": "cuda", "free_bytes": -1}], "free_bytes"),
        ([{"backend": "cuda", "total_bytes": 1, "free_bytes": 2}], "above"),
        ([{"name": "host"}], "names must differ"),
        ([{"name": "A"}, {"name": "A"}], "names must differ"),
    ],
)
def test_bad_devices_are_errors(devices, word):
    with pytest.raises(ValueError, match=word):
        _memory.memory_budget(oracle.loaded(LLAMA), devices)


def test_an_unknown_build_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"b1.*turboquant-69d8e4be.*upstream-b11434"):
        _memory.memory_budget(oracle.loaded(LLAMA), build="b1")


@pytest.mark.parametrize("model", [None, "gemma", [], {}, {"architecture": "llama", "metadata": {}, "tensors": []}])
def test_a_bad_model_is_an_error(model):
    with pytest.raises(ValueError, match=r"model|architecture|header|tensor|metadata"):
        _memory.memory_budget(model)


def test_kv_cache_bytes_is_the_sum_of_the_caches():
    for name in (LLAMA, GEMMA4, E4B):
        options = {"ctx_size": 16384, "cache_type_k": "q8_0", "cache_type_v": "turbo3"}
        b = _memory.memory_budget(oracle.loaded(name), options=options)
        want = sum(c["k_bytes"] + c["v_bytes"] for c in b["caches"])
        assert _memory.kv_cache_bytes(oracle.loaded(name), options) == want


@pytest.mark.parametrize(
    ("device", "starts", "warned"),
    [
        ({"name": "Vulkan0"}, True, True),
        ({"name": "Vulkan0", "max_storage_buffer_range": 2**32 - 1}, True, False),
        ({"name": "Vulkan0", "max_storage_buffer_range": 2**27}, False, False),
        ({"name": "llvmpipe (LLVM 20.1.8, 256 bits)"}, False, False),
    ],
)
def test_an_unknown_limit_of_vulkan_is_warned_of_where_it_decides(device, starts, warned):
    """Row 3561: 131,072 cells of 2 KiB are 256 MiB for each layer, more than llvmpipe binds."""
    gpu = [{**device, "backend": "vulkan", "total_bytes": 1 << 40}]
    model = oracle.loaded("llama31-8b-real")
    result = _memory.memory_budget(model, gpu, {"ctx_size": 131072, "program": "llama-fit-params"})
    assert result["starts"] is starts
    assert any("maxStorageBufferRange" in text for text in result["warnings"]) is warned
    small = _memory.memory_budget(model, gpu, {"ctx_size": 4096, "program": "llama-fit-params"})
    assert not any("maxStorageBufferRange" in text for text in small["warnings"])


@pytest.mark.parametrize(
    ("devices", "options", "warned"),
    [
        ((), {}, True),
        ((), {"repack": False}, False),
        # Without a mapped file a tensor is in one buffer or the other.
        ((), {"mmap": False}, False),
        # The GPU's host buffer goes before the forms of the processor.
        ([gpu()], {"n_gpu_layers": 0}, False),
    ],
)
def test_a_second_form_of_the_weights_is_told_and_not_counted(devices, options, warned):
    result = budget(devices=devices, ctx_size=4096, **options)
    told = [text for text in result["warnings"] if "CPU_REPACK" in text]
    assert bool(told) is warned
    counted = budget(devices=devices, ctx_size=4096, **{**options, "repack": False})
    assert result["total"] == counted["total"]


def test_the_second_form_is_at_most_that_of_all_weights_that_are_multiplied():
    model = oracle.loaded(LLAMA)
    told = re.search(r"up to (\d+) MiB of weights", " ".join(budget(ctx_size=4096)["warnings"]))
    most = sum(t.nbytes for t in model.tensors if t.op == "mul_mat" and t.type in ("Q4_K", "Q6_K"))
    assert told
    assert int(told[1]) == round(most / (1 << 20)) > 0
    assert not any(t.name == "token_embd.weight" and t.op == "mul_mat" for t in model.tensors)


def chameleon():
    """The model of this architecture that the fork's test-llama-archs makes, with 14 layers."""
    wide, layers, vocab = 256, 14, 10240
    shapes = {
        **{f"attn_{side}.weight": [wide, wide] for side in ("q", "k", "v", "output")},
        **{f"attn_{side}_norm.{part}": [128, 2] for side in "qk" for part in ("weight", "bias")},
        **{f"attn_{side}.bias": [wide] for side in "qkv"},
        **{f"{side}_norm.weight": [wide] for side in ("attn", "ffn")},
        **{f"ffn_{side}.weight": [wide, 384] for side in ("gate", "up")},
        "ffn_down.weight": [384, wide],
    }
    tensors = {
        "token_embd.weight": [wide, vocab],
        "output_norm.weight": [wide],
        "output.weight": [wide, vocab],
        **{f"blk.{il}.{name}": dims for il in range(layers) for name, dims in shapes.items()},
    }
    counts = {"vocab_size": vocab, "context_length": 128, "embedding_length": wide, "block_count": layers}
    counts.update({"feed_forward_length": 384, "attention.head_count": 2, "attention.head_count_kv": 2})
    return {
        "architecture": "chameleon",
        "metadata": {f"chameleon.{name}": count for name, count in counts.items()},
        "tensors": [[name, dims, "F32", 4 * math.prod(dims)] for name, dims in tensors.items()],
    }


@pytest.mark.parametrize(
    ("options", "mib"),
    [
        ({"ctx_size": 4096}, 48.54),
        ({"ctx_size": 2048, "flash_attn": "off"}, 45.54),
        ({"ctx_size": 8192, "cache_type_k": "q8_0", "cache_type_v": "turbo4"}, 56.54),
        ({"ctx_size": 1024, "ubatch_size": 64, "parallel": 3}, 5.38),
    ],
)
def test_chameleon_overwrites_its_image_tokens_in_a_second_copy_of_the_logits(options, mib):
    """Measured with llama-fit-params of 69d8e4be, which prints two decimals."""
    result = _memory.memory_budget(chameleon(), [], {**options, "program": "llama-fit-params"})
    assert result["devices"]["host"]["compute"] / (1 << 20) == pytest.approx(mib, abs=0.0051)
