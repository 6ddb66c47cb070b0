# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a release has to be, and what a GPU's server has to show. A real server is put to it by the scenarios."""

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_gate, _server_log, _server_probe


def measuring(*rates):
    """Return a measurement that gives these rates one after the other, and what is left of them."""
    left = list(rates)
    return left, lambda: {"tokens_per_second": left.pop(0), "tokens": 16}


@pytest.mark.parametrize(
    ("settings", "before", "rates", "left", "slow"),
    [
        ({}, 100.0, [0.1], [], ""),
        ({"min_tps": 0.0, "min_tps_percent": 0.0}, None, [0.0], [], ""),
        ({"min_tps": 25.0}, None, [25.0, 99.0], [99.0], ""),
        ({"min_tps": 25.0}, 100.0, [3.0, 26.0, 99.0], [99.0], ""),
        ({"min_tps": 25.0}, None, [3.0, 9.5, 4.0, 9.0], [9.0],
         "decodes 9.5 tokens/s, below the 25 that min_tps asks for"),
        ({"min_tps_percent": 50.0}, None, [0.1], [], ""),
        ({"min_tps_percent": 50.0}, 80.0, [40.0], [], ""),
        (
            {"min_tps_percent": 50.0}, 80.0, [39.9, 12.0, 13.0], [],
            "decodes 39.9 tokens/s, below the 40 that are 50% (min_tps) of the 80 of the release before",
        ),
    ],
)  # fmt: skip
def test_a_busy_moment_is_no_slow_release(settings, before, rates, left, slow):
    remaining, measure = measuring(*rates)
    answer, why = _server_gate.fast_enough(measure, settings, before)
    assert (remaining, why) == (left, slow)
    assert answer["tokens_per_second"] == max(rates[: len(rates) - len(left)])


MIB = 1 << 20
ON_GPU = """load_tensors: offloaded 31/31 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   417.00 MiB
load_tensors:        CUDA0 model buffer size = 15805.00 MiB
llama_context:  CUDA_Host  output buffer size =     1.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =   375.00 MiB
llama_kv_cache: size =  375.00 MiB ( 32768 cells,   5 layers,  1/1 seqs), K (q8_0):  255.00 MiB, V (turbo4):  120.00 MiB
sched_reserve:      CUDA0 compute buffer size =   538.00 MiB
sched_reserve:  CUDA_Host compute buffer size =    80.00 MiB
sched_reserve: graph splits = 2
"""
# The driver is gone: the same server on the CPU.
ON_CPU = "\n".join(line.replace("CUDA0", "CPU").replace("CUDA_Host", "CPU") for line in ON_GPU.splitlines()[1:])
# What a build prints that keeps the sizes to itself, or the journal where the rest was dropped.
CUT = "load_tensors:        CUDA0 model buffer size = 15805.00 MiB\nsrv llama_server: model loaded\n"
TRUE = {"kv_bytes": 375 * MIB, "total_bytes": (417 + 15805 + 1 + 375 + 538 + 80) * MIB}
SPEAKS = "the server's log shows no cache and compute"


@pytest.fixture
def server(monkeypatch):
    """An active unit with this log that answers; call it with the log and what examine is to know."""

    def decode(client, timeout):
        return {"tokens": 16, "tokens_per_second": 50.0, "text": "Blue"}

    monkeypatch.setattr(_server_probe, "decode", decode)

    def call(log, predicted=None, before=None, state="active", status=401, **settings):
        def run(words):
            if words[0] == "systemctl":
                return 0, f"ActiveState={state}\nSubState=running\nResult=success\nInvocationID=1f\n", ""
            assert words[0] == "journalctl"
            assert "_SYSTEMD_INVOCATION_ID=1f" in words
            return 0, log, ""

        item = {
            "name": "chat", "host": "127.0.0.1", "port": 1, "backend": "cuda", "has_tls": False, "has_keys": True,
            "n_gpu_layers": 999, "max_graph_splits": 8, **settings,
        }  # fmt: skip
        monkeypatch.setattr(_server_probe.Client, "request", lambda self, *words, **more: (status, ""))
        return _server_gate.examine(run, item, "k", predicted, before)

    return call


@pytest.mark.parametrize("predicted", [TRUE, None], ids=["planned", "without a plan"])
def test_a_server_on_its_gpu_passes(server, predicted):
    seen = server(ON_GPU, predicted)
    assert seen["problems"] == []
    assert seen["graph_splits"] == 2
    assert seen["figures"]["kv_measured"] == 375 * MIB
    assert seen["tokens_per_second"] == 50.0


@pytest.mark.parametrize("predicted", [TRUE, None], ids=["planned", "without a plan"])
def test_a_server_that_fell_back_to_the_cpu_does_not(server, predicted):
    said = "; ".join(server(ON_CPU, predicted)["problems"])
    assert "no model or cache buffer lies on a GPU: the server works on the CPU" in said
    # An instance of the CPU is where it should be.
    assert server(ON_CPU, predicted, backend="cpu", n_gpu_layers=None)["problems"] == []


@pytest.mark.parametrize("log", [CUT, ""])
@pytest.mark.parametrize("predicted", [TRUE, None], ids=["planned", "without a plan"])
def test_a_log_that_does_not_show_the_gpu_does_not_pass(server, log, predicted):
    (said,) = server(log, predicted)["problems"]
    assert said.startswith(SPEAKS)
    assert ("on the GPU is not seen" in said) == (predicted is None)


def test_without_a_gpu_and_a_plan_there_is_nothing_to_see_in_the_log(server):
    assert server("", backend="cpu", n_gpu_layers=None)["problems"] == []


@pytest.mark.parametrize(("log", "said"), [(ON_GPU, None), (ON_CPU, "the server works on the CPU")])
@pytest.mark.parametrize("predicted", [TRUE, None], ids=["planned", "without a plan"])
def test_what_the_journal_has_no_more_is_known_from_the_gate_before(server, log, said, predicted):
    seen = server(CUT, predicted, _server_log.parse_log(log))
    assert bool(seen["problems"]) == bool(said)
    assert said is None or said in "; ".join(seen["problems"])
    # What the journal has counts before what was.
    assert server(ON_GPU, predicted, _server_log.parse_log(ON_CPU))["problems"] == []


def test_a_unit_that_does_not_run_is_asked_nothing(server):
    seen = server(ON_GPU, TRUE, state="failed")
    assert seen["problems"] == ["llama-server@chat.service is failed (running, result success)"]
    assert seen["active"] is False


def test_keys_that_are_not_in_force_are_a_problem(server):
    (said,) = server(ON_GPU, TRUE, status=200)["problems"]
    assert "a wrong key is answered 200 instead of 401" in said
