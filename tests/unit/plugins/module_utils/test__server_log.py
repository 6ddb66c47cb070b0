# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_log as log

DATA = Path(__file__).parents[3] / "data" / "llama-server"
MIB = 1 << 20

# As the fork writes them (src/llama-kv-cache.cpp:427,459, llama-context.cpp:269,608,623), a model with two caches.
FORK = """load_tensors: offloaded 31/31 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   417.66 MiB
load_tensors:        CUDA0 model buffer size = 15805.11 MiB
llama_context: n_ctx         = 32768
llama_context: flash_attn    = enabled
llama_context:  CUDA_Host  output buffer size =     1.00 MiB
llama_kv_cache_iswa: creating non-SWA KV cache, size = 32768 cells
llama_kv_cache:      CUDA0 KV buffer size =   245.00 MiB
llama_kv_cache: size =  245.00 MiB ( 32768 cells,   5 layers,  1/1 seqs), K (q8_0):  170.00 MiB, V (turbo4):   75.00 MiB
llama_kv_cache_iswa: creating     SWA KV cache, size = 1536 cells
llama_kv_cache:      CUDA0 KV buffer size =   130.00 MiB
llama_kv_cache: size =  130.00 MiB (  1536 cells,  25 layers,  1/1 seqs), K (q8_0):   85.00 MiB, V (turbo4):   45.00 MiB
sched_reserve:      CUDA0 compute buffer size =   538.00 MiB
sched_reserve:  CUDA_Host compute buffer size =    80.01 MiB
sched_reserve: graph splits = 62 (with bs=512), 2 (with bs=1)
"""


def test_the_log_of_a_real_server():
    seen = log.parse_log((DATA / "log-b10434-smollm2.txt").read_text(encoding="utf-8"))
    assert seen["complete"] is True
    assert seen["model_buffers"] == {"CPU_Mapped": round(92.10 * MIB)}
    assert seen["kv_buffers"] == {"CPU": round(23.91 * MIB)}
    assert seen["compute_buffers"] == {"CPU": round(14.42 * MIB)}
    assert seen["output_buffers"] == {"CPU": round(0.19 * MIB)}
    assert seen["graph_splits"] == 1
    assert seen["context"]["n_ctx"] == 2048
    assert seen["flash_attn"] == "enabled"
    (cache,) = seen["caches"]
    assert (cache["cells"], cache["layers"], cache["type_k"], cache["type_v"]) == (2048, 30, "q8_0", "q8_0")


def test_lines_of_the_fork_with_two_caches():
    seen = log.parse_log(FORK)
    assert seen["kv_bytes"] == 375 * MIB
    assert seen["kv_buffers"] == {"CUDA0": 375 * MIB}
    assert [cache["cells"] for cache in seen["caches"]] == [32768, 1536]
    assert seen["caches"][0]["type_v"] == "turbo4"
    assert seen["layers_offloaded"] == [31, 31]
    # Of the prompt's and the single token's graph the worse one counts.
    assert seen["graph_splits"] == 62


def test_recurrent_state_is_not_counted_as_kv():
    seen = log.parse_log(
        "x: CUDA0 RS buffer size =    19.50 MiB\n"
        "x: size =   19.50 MiB (     4 cells,  24 layers,  4 seqs), R (f32): 1.50 MiB, S (f32): 18.00 MiB\n"
        "x: CUDA0 compute buffer size = 1.00 MiB\n"
    )
    assert seen["kv_bytes"] == 0
    assert seen["caches"][0]["kind"] == "recurrent"
    assert seen["complete"] is True


@pytest.mark.parametrize("text", ["", "srv llama_server: model loaded\n", FORK[:200]])
def test_a_log_without_the_lines_is_incomplete(text):
    assert log.parse_log(text)["complete"] is False


def test_a_prediction_that_came_true():
    problems, figures = log.compare(log.parse_log(FORK), {"kv_bytes": 375 * MIB, "total_bytes": 17000 * MIB})
    assert problems == []
    assert figures["kv_measured"] == figures["kv_predicted"] == 375 * MIB


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ({"kv_bytes": 375 * MIB + 20000}, "KV cache: predicted 375.02 MiB, the server allocated 375.00 MiB"),
        ({"kv_bytes": 340 * MIB}, "KV cache"),
        ({"kv_bytes": 375 * MIB, "total_bytes": 16000 * MIB}, r"all buffers: .*\+7\.6 %, allowed 5 %"),
        ({"kv_bytes": 375 * MIB, "total_bytes": 19000 * MIB}, r"-9\.\d %"),
    ],
)
def test_a_prediction_that_did_not(predicted, message):
    problems, _figures = log.compare(log.parse_log(FORK), predicted)
    assert len(problems) == 1
    assert re.search(message, problems[0])


# Of the fork on a processor with AVX2, a model whose weights are mostly Q4_K.
REPACKED = """load_tensors:   CPU_Mapped model buffer size =  1000.00 MiB
load_tensors:   CPU_REPACK model buffer size =   600.00 MiB
llama_kv_cache:        CPU KV buffer size =   100.00 MiB
llama_kv_cache: size =  100.00 MiB (  4096 cells,   5 layers,  1/1 seqs), K (q8_0):   50.00 MiB, V (q8_0):   50.00 MiB
sched_reserve:        CPU compute buffer size =   100.00 MiB
"""


@pytest.mark.parametrize(
    ("predicted", "fits"), [(1200, True), (1800, True), (1000, False), (2000, False), (1500, False)]
)
def test_weights_in_the_form_of_the_processor_are_no_part_of_the_plan(predicted, fits):
    seen = log.parse_log(REPACKED)
    assert seen["total_bytes"] == 1800 * MIB
    problems, figures = log.compare(seen, {"kv_bytes": 100 * MIB, "total_bytes": predicted * MIB})
    assert (problems == []) is fits
    assert figures["total_measured"] == 1800 * MIB


def test_a_plan_that_cannot_be_confirmed_is_a_problem():
    problems, _figures = log.compare(log.parse_log(""), {"kv_bytes": 1})
    assert "cannot be confirmed" in problems[0]


def test_fallback_to_the_cpu_is_seen():
    seen = log.parse_log(FORK)
    assert "62 splits, more than 8" in log.on_gpu(seen, 8, True)[0]
    assert log.on_gpu(seen, None, True) == []
    seen["kv_buffers"] = {"CPU": 1}
    assert any("host memory" in problem for problem in log.on_gpu(seen, None, True))
    assert log.on_gpu(seen, None, False) == []
    seen["model_buffers"] = {"CPU_Mapped": 1, "CUDA_Host": 1}
    assert any("works on the CPU" in problem for problem in log.on_gpu(seen, None, False))


def test_the_last_words_are_the_end_and_what_told_of_a_problem():
    text = "\n".join(["error: the cause"] + [f"line {n}" for n in range(20)])
    words = log.last_words(text, 3).splitlines()
    assert words == ["error: the cause", "line 17", "line 18", "line 19"]
    assert log.last_words("") == ""
