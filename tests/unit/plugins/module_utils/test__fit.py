# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice of context and cache types: what it keeps, and what it says where nothing fits."""

from __future__ import annotations

import functools
import gzip
import json
import re
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _fit, _memory
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1024**3
MODELS = Path(__file__).parents[3] / "data" / "oracle" / "models"
REAL = sorted(path.name[: -len("-real.json.gz")] for path in MODELS.glob("*-real.json.gz"))


@functools.cache
def model(name):
    with gzip.open(MODELS / f"{name}-real.json.gz", "rt", encoding="utf-8") as file:
        return _memory.load_model(json.load(file))


def gpus(*sizes, backend="cuda"):
    prefix = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}[backend]
    return [
        {"name": f"{prefix}{index}", "backend": backend, "total_bytes": int(size * GIB), "free_bytes": int(size * GIB)}
        for index, size in enumerate(sizes)
    ]


def keeps_headroom(devices, budget, headroom):
    return all(budget["devices"][device["name"]]["total"] + headroom <= device["free_bytes"] for device in devices)


def test_the_models_of_the_oracle_are_there():
    assert len(REAL) >= 8


@pytest.mark.parametrize(
    ("name", "devices", "wishes", "chosen"),
    [
        # The first of the ladder that reaches the model's own context.
        ("gemma4-26b-a4b", gpus(24), {}, (262144, "f16/f16")),
        ("gemma3-27b", gpus(24), {}, (131072, "q8_0/turbo4")),
        ("llama31-8b", gpus(24), {}, (131072, "f16/f16")),
        ("llama31-8b", gpus(12), {}, (131072, "turbo4/turbo4")),
        ("llama31-8b", gpus(12), {"max_ctx": 65536}, (65536, "q8_0/q8_0")),
        # None reaches it: the one that gets furthest.
        ("llama31-8b", gpus(8), {}, (None, "turbo3/turbo3")),
        ("llama31-8b", gpus(8), {"ladder": ["f16/f16", "q8_0/q8_0"]}, (None, "q8_0/q8_0")),
        # Heads of 64: no pair with turbo has a kernel there (MEMORY: gpt-oss).
        ("gpt-oss-20b", gpus(14.4), {}, (131072, "q8_0/q8_0")),
        # Vulkan: equal types, and of turbo only turbo3, which is not chosen unless it is named.
        ("llama31-8b", gpus(8, backend="vulkan"), {}, (None, "q4_0/q4_0")),
        ("llama31-8b", gpus(8, backend="vulkan"), {"ladder": ["q4_0/q4_0", "turbo3/turbo3"]}, (None, "turbo3/turbo3")),
        ("llama31-8b", gpus(8, backend="vulkan"), {"options": {"cache_type_k": "turbo3"}}, (None, "turbo3/turbo3")),
        # Upstream has no turbo types.
        ("llama31-8b", gpus(8), {"build": "upstream-b11434"}, (None, "q4_0/q4_0")),
    ],
)
def test_choices(name, devices, wishes, chosen):
    got = _fit.fit_context(model(name), devices, **wishes)
    ctx, pair = chosen
    assert f"{got['options']['cache_type_k']}/{got['options']['cache_type_v']}" == pair
    if ctx is not None:
        assert got["options"]["ctx_size"] == ctx
    assert got["budget"]["accepted"], got["budget"]["reason"]
    assert got["options"]["fit"] is False
    (step,) = [step for step in got["considered"] if step["chosen"]]
    assert f"{step['cache_type_k']}/{step['cache_type_v']}" == pair
    assert all(step["reason"] for step in got["considered"])


def test_every_pair_is_accounted_for_in_the_order_of_the_ladder():
    got = _fit.fit_context(model("gpt-oss-20b"), gpus(16))
    names = [f"{step['cache_type_k']}/{step['cache_type_v']}" for step in got["considered"]]
    assert names == [pair.name for pair in _fit.LADDER]
    refused = {
        name: step["reason"] for name, step in zip(names, got["considered"]) if "flash attention" in step["reason"]
    }
    assert set(refused) == {"q8_0/turbo4", "q8_0/turbo3", "turbo4/turbo4", "turbo3/turbo3"}


def test_a_pair_of_which_wrong_answers_were_reported_is_named_and_not_taken():
    got = _fit.fit_context(model("llama31-8b"), gpus(8, backend="vulkan"))
    (step,) = [step for step in got["considered"] if step["cache_type_k"] == "turbo3"]
    assert "reported to give gibberish" in step["reason"]
    assert not any("gibberish" in text for text in got["budget"]["warnings"])
    asked = _fit.fit_context(model("llama31-8b"), gpus(8, backend="vulkan"), ladder=["turbo3/turbo3"])
    assert any("gibberish" in text for text in asked["budget"]["warnings"])
    # the same types elsewhere, and other builds, are not meant
    assert not any(
        "gibberish" in step["reason"] for step in _fit.fit_context(model("llama31-8b"), gpus(8))["considered"]
    )


def test_where_only_a_doubted_pair_fits_it_is_offered_with_the_doubt():
    wishes = {"min_ctx": 24576, "max_ctx": 24576}
    with pytest.raises(_fit.FitError, match=r"the pair turbo3/turbo3 \(ladder\), turbo3 on Vulkan was reported"):
        _fit.fit_context(model("llama31-8b"), gpus(6.4, backend="vulkan"), **wishes)


def test_the_ladder_names_its_sources_and_loses_more_and_more_within_each_kind_of_k():
    for kept in ("q8_0", "turbo"):
        losses = [pair.loss_percent for pair in _fit.LADDER if pair.type_k.startswith(kept)]
        assert losses == sorted(losses)
    assert all(pair.source for pair in _fit.LADDER)


def test_what_is_fixed_stays():
    fixed = {"parallel": 2, "ubatch_size": 1024, "cache_type_k": "q8_0", "cache_type_v": "auto", "ctx_size": None}
    got = _fit.fit_context(model("llama31-8b"), gpus(12), fixed)
    assert got["options"]["parallel"] == 2
    assert got["options"]["ubatch_size"] == 1024
    assert got["options"]["cache_type_k"] == "q8_0"
    assert {step["cache_type_k"] for step in got["considered"]} == {"q8_0"}
    both = _fit.fit_context(model("llama31-8b"), gpus(12), {"cache_type_k": "q8_0", "cache_type_v": "turbo3"})
    assert [step["chosen"] for step in both["considered"]] == [True]


def test_a_fixed_context_leaves_only_the_pair():
    got = _fit.fit_context(model("llama31-8b"), gpus(8), {"ctx_size": 40000})
    assert got["options"]["ctx_size"] == 40000
    assert (got["options"]["cache_type_k"], got["options"]["cache_type_v"]) == ("q8_0", "turbo3")


def test_experts_move_to_the_cpu_only_when_asked_and_as_few_as_will_do():
    small = gpus(12)
    wishes = {"max_ctx": 65536, "min_ctx": 65536}
    with pytest.raises(_fit.FitError, match=r"n_cpu_moe \d+ \(adjust: \[n_cpu_moe\]\)"):
        _fit.fit_context(model("qwen3-30b-a3b"), small, **wishes)
    got = _fit.fit_context(model("qwen3-30b-a3b"), small, adjust=["n_cpu_moe"], **wishes)
    moved = got["options"]["n_cpu_moe"]
    assert 0 < moved < 48
    with pytest.raises(_fit.FitError):
        _fit.fit_context(model("qwen3-30b-a3b"), small, {"n_cpu_moe": moved - 1}, **wishes)
    roomy = _fit.fit_context(model("qwen3-30b-a3b"), gpus(48), adjust=["n_cpu_moe"], **wishes)
    assert "n_cpu_moe" not in roomy["options"]


def test_layers_move_to_the_cpu_only_when_asked():
    got = _fit.fit_context(model("llama31-8b"), gpus(5), adjust=["n_gpu_layers"], max_ctx=16384)
    layers = got["options"]["n_gpu_layers"]
    assert 0 < layers < 33
    with pytest.raises(_fit.FitError):
        _fit.fit_context(model("llama31-8b"), gpus(5), {"n_gpu_layers": layers + 1}, max_ctx=16384, min_ctx=16384)


def test_the_memory_of_the_host_limits_too():
    free = _fit.fit_context(model("llama31-8b"), gpus(4), adjust=["n_gpu_layers"], max_ctx=16384)
    assert free["options"]["ctx_size"] == 16384
    with pytest.raises(_fit.FitError, match=r"misses host by \d+ bytes .*cache_ram: 0"):
        _fit.fit_context(
            model("llama31-8b"), gpus(4), adjust=["n_gpu_layers"], max_ctx=16384, min_ctx=16384, ram_bytes=10 * GIB
        )


def test_the_cpu_alone():
    got = _fit.fit_context(model("llama31-8b"), [], ram_bytes=24 * GIB)
    assert got["budget"]["devices"]["host"]["total"] + GIB <= 24 * GIB
    assert got["options"]["ctx_size"] % 256 == 0
    unlimited = _fit.fit_context(model("llama31-8b"), [])
    assert any("nothing limits the choice" in text for text in unlimited["warnings"])


def test_headroom_for_each_device():
    devices = gpus(8, 8)
    got = _fit.fit_context(
        model("llama31-8b"), devices, headroom_bytes={"CUDA0": 3 * GIB, "host": 2 * GIB}, ram_bytes=64 * GIB
    )
    assert {name: part["wanted"] for name, part in got["headroom"].items()} == {
        "CUDA0": 3 * GIB,
        "CUDA1": _fit.HEADROOM_BYTES,
        "host": 2 * GIB,
    }
    assert all(part["left"] >= part["wanted"] for part in got["headroom"].values())


@pytest.mark.parametrize(
    ("name", "devices", "wishes", "words"),
    [
        ("gemma4-26b-a4b", gpus(16), {}, ["misses CUDA0 by", "n_cpu_moe", "a smaller quantisation", "CUDA0 with"]),
        ("llama31-8b", gpus(8), {"ladder": ["f16/f16"], "min_ctx": 32768}, ["a context of 16", "q8_0/turbo4"]),
        ("llama31-8b", gpus(5.5), {}, ["misses CUDA0 by", "n_gpu_layers", "% of what they are"]),
        ("gemma3-27b", gpus(18.5), {"ladder": ["f16/f16"], "min_ctx": 4096}, ["one slot in place of 4"]),
        ("gpt-oss-20b", gpus(24), {"ladder": ["q8_0/turbo4"]}, ["whatever the memory", "pairs f16/f16, q8_0/q8_0"]),
        ("llama31-8b", gpus(24), {"ladder": ["f16/q8_0"]}, ["whatever the memory", "f16/q8_0"]),
    ],
)
def test_nothing_fits_says_by_how_much_and_what_would(name, devices, wishes, words):
    with pytest.raises(_fit.FitError) as refused:
        _fit.fit_context(model(name), devices, **wishes)
    for word in words:
        assert word in str(refused.value)


def test_what_the_error_promises_is_true():
    wishes = {"min_ctx": 32768}
    with pytest.raises(_fit.FitError) as refused:
        _fit.fit_context(model("llama31-8b"), gpus(8), ladder=["f16/f16"], **wishes)
    text = str(refused.value)
    smaller = int(re.search(r"a context of (\d+) with", text[text.index("make it fit") :]).group(1))
    got = _fit.fit_context(model("llama31-8b"), gpus(8), ladder=["f16/f16"], min_ctx=smaller)
    assert got["options"]["ctx_size"] == smaller
    needed = int(re.search(r"CUDA0 with (\d+) bytes", text).group(1))
    for free, fits in ((needed, True), (needed - 1, False)):
        device = [{"name": "CUDA0", "backend": "cuda", "total_bytes": free, "free_bytes": free}]
        if fits:
            assert _fit.fit_context(model("llama31-8b"), device, ladder=["f16/f16"], **wishes)
        else:
            with pytest.raises(_fit.FitError):
                _fit.fit_context(model("llama31-8b"), device, ladder=["f16/f16"], **wishes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ladder": "q8_0/turbo4"}, "ladder is a list of pairs"),
        ({"ladder": []}, "ladder is empty"),
        ({"ladder": ["q8_0"]}, "a pair of cache types such as q8_0/turbo4 is wanted"),
        ({"ladder": [["q8_0", "turbo5"]]}, "knows the types"),
        (
            {"ladder": ["f16/f16"], "options": {"cache_type_k": "q8_0"}},
            "no pair of the ladder (f16/f16) has q8_0 for K",
        ),
        ({"options": {"ctx": 8192}}, "unknown option 'ctx'"),
        ({"options": ["ctx_size"]}, "options is a dictionary"),
        ({"options": {"cache_type_k": "q8_0", "cache_type_v": "turbo5"}}, "knows the types"),
        ({"build": "b1"}, "unknown build 'b1'"),
        ({"min_ctx": 0}, "min_ctx is a whole number of 1 or more, got 0"),
        ({"max_ctx": "big"}, "max_ctx is a whole number of 1 or more, got 'big'"),
        ({"min_ctx": 65536, "max_ctx": 32768}, "min_ctx 65536 is above max_ctx 32768"),
        ({"headroom_bytes": -1}, "headroom_bytes is a whole number of 0 or more"),
        ({"headroom_bytes": {"CUDA7": 1}}, "headroom_bytes names CUDA7: there are CUDA0"),
        ({"headroom_bytes": {"host": 1}}, "the host only with ram_bytes"),
        ({"ram_bytes": 0}, "ram_bytes is a whole number of 1 or more"),
        ({"adjust": "n_cpu_moe"}, "adjust is a list of n_cpu_moe and n_gpu_layers"),
        ({"adjust": ["threads"]}, "adjust is a list of n_cpu_moe and n_gpu_layers"),
        ({"adjust": ["n_cpu_moe"], "options": {"n_cpu_moe": 2}}, "named in adjust too"),
    ],
)
def test_wrong_input_is_an_error_that_names_it(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _fit.fit_context(model("llama31-8b"), gpus(24), **arguments)


def test_devices_are_checked():
    with pytest.raises(ValueError, match="devices is 'CUDA0'"):
        _fit.fit_context(model("llama31-8b"), "CUDA0")
    with pytest.raises(ValueError, match="must be one of cuda, rocm, vulkan"):
        _fit.fit_context(model("llama31-8b"), [{"name": "X", "backend": "metal", "free_bytes": 1}])


def test_the_input_is_left_as_it_was():
    options, devices = {"parallel": 1}, gpus(12)
    before = json.dumps([options, devices])
    _fit.fit_context(model("llama31-8b"), devices, options)
    assert json.dumps([options, devices]) == before


QUESTIONS = {
    "name": st.sampled_from(REAL),
    "size": st.floats(min_value=1, max_value=80, allow_nan=False),
    "backend": st.sampled_from(["cuda", "rocm", "vulkan"]),
    "count": st.integers(min_value=1, max_value=3),
    "headroom": st.integers(min_value=0, max_value=4 * GIB),
    "parallel": st.sampled_from([-1, 1, 2]),
}


@settings(max_examples=30, deadline=None)
@given(**QUESTIONS)
def test_a_choice_keeps_the_headroom_and_256_more_tokens_would_not(name, size, backend, count, headroom, parallel):
    devices = gpus(*[size] * count, backend=backend)
    try:
        got = _fit.fit_context(model(name), devices, {"parallel": parallel}, headroom_bytes=headroom)
    except _fit.FitError:
        return
    options, trained = got["options"], model(name).hparams.n_ctx_train
    # Asked again of the planner itself, not of what the search remembers.
    budget = _memory.memory_budget(model(name), devices, options)
    assert budget["accepted"], budget["reason"]
    assert keeps_headroom(devices, budget, headroom)
    assert options["ctx_size"] % 256 == 0
    if options["ctx_size"] < trained // 256 * 256:
        more = _memory.memory_budget(model(name), devices, {**options, "ctx_size": options["ctx_size"] + 256})
        assert not (more["accepted"] and keeps_headroom(devices, more, headroom))
    assert got["calls"] < 100


@settings(max_examples=20, deadline=None)
@given(**QUESTIONS, more=st.integers(min_value=0, max_value=8 * GIB))
def test_more_memory_never_gives_less_context(name, size, backend, count, headroom, parallel, more):
    def reached(devices):
        try:
            return _fit.fit_context(model(name), devices, {"parallel": parallel}, headroom_bytes=headroom)["options"][
                "ctx_size"
            ]
        except _fit.FitError:
            return 0

    devices = gpus(*[size] * count, backend=backend)
    larger = [
        {**device, "total_bytes": device["total_bytes"] + more, "free_bytes": device["free_bytes"] + more}
        for device in devices
    ]
    assert reached(larger) >= reached(devices)


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(["llama31-8b", "gemma3-27b", "qwen36-27b"]), size=st.floats(min_value=4, max_value=40))
def test_no_earlier_pair_of_the_ladder_reaches_as_far(name, size):
    devices = gpus(size)
    try:
        got = _fit.fit_context(model(name), devices)
    except _fit.FitError:
        return
    for step in got["considered"]:
        if step["chosen"]:
            return
        choice = {**got["options"], "cache_type_k": step["cache_type_k"], "cache_type_v": step["cache_type_v"]}
        budget = _memory.memory_budget(model(name), devices, choice)
        assert not (budget["accepted"] and keeps_headroom(devices, budget, _fit.HEADROOM_BYTES))
