# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a fleet: verdicts, what is chosen, what instances on one host leave each other, and what it costs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _fit, _memory, _plan
from ansible_collections.llamafleet.turboquant.tests.unit.plan_data import (
    FILES,
    FORK,
    GIB,
    Reader,
    device,
    host,
    info,
    plan,
)

OPEN = {"ctx_size": "auto", "cache_type_k": "auto", "cache_type_v": "auto"}
FIXED = {"ctx_size": 32768, "cache_type_k": "q8_0", "cache_type_v": "turbo4"}
GEMMA = "gemma4-26b-a4b-real"


def only(result: dict[str, Any]) -> dict[str, Any]:
    ((row,),) = [host["instances"] for host in result["hosts"]]
    return row


def test_a_fixed_instance_is_what_memory_budget_says() -> None:
    card = device("CUDA0", 23.5)
    row = only(plan(host("h", [{"name": "a", "model": GEMMA, **FIXED}], [card])))
    budget = _memory.memory_budget(
        info(GEMMA)["model"],
        [{key: card[key] for key in ("name", "backend", "total_bytes", "free_bytes")}],
        {**FIXED, "parallel": 1, "cache_ram": 0, "fit": False},
        FORK,
    )
    assert row["verdict"] == "fits"
    assert row["context"] == budget["context"]
    assert row["memory"]["CUDA0"] == budget["devices"]["CUDA0"]
    # Checkpoints may grow in RAM; they are told apart, so that nothing is refused for what may never come.
    assert row["memory"]["host"]["total"] + row["memory"]["host"]["growing"] == budget["devices"]["host"]["total"]


def test_an_open_instance_gets_what_fit_context_chooses() -> None:
    card = device("CUDA0", 23.5)
    row = only(plan(host("h", [{"name": "a", "model": GEMMA, **OPEN}], [card])))
    choice = _fit.fit_context(
        info(GEMMA)["model"],
        [{key: card[key] for key in ("name", "backend", "total_bytes", "free_bytes")}],
        {"parallel": 1, "fit": False},
        FORK,
    )
    assert row["verdict"] == "fits"
    assert row["auto"] == ["cache_type_k", "cache_type_v", "ctx_size"]
    assert {key: row["options"][key] for key in row["auto"]} == {key: choice["options"][key] for key in row["auto"]}
    assert any(step["chosen"] for step in row["considered"])


@pytest.mark.parametrize(
    ("open_", "fixed"),
    [
        (["ctx_size"], {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
        (["cache_type_k", "cache_type_v"], {"ctx_size": 16384}),
        (["cache_type_v"], {"ctx_size": 16384, "cache_type_k": "q8_0"}),
    ],
)
def test_what_is_fixed_stays(open_: list[str], fixed: dict[str, Any]) -> None:
    row = only(plan(host("h", [{"name": "a", "model": GEMMA, **OPEN, **fixed}], [device("CUDA0", 23.5)])))
    assert row["verdict"] == "fits"
    assert row["auto"] == open_
    assert {key: row["options"][key] for key in fixed} == fixed


def test_limits_of_the_choice_are_kept() -> None:
    small = host("h", [{"name": "a", "model": GEMMA, **OPEN}], [device("CUDA0", 23.5)])
    row = only(plan(small._replace(choice=_plan.Choice(max_ctx=20480, ladder=["turbo3/turbo3"]))))
    assert (row["options"]["ctx_size"], row["options"]["cache_type_k"]) == (20480, "turbo3")
    roomy = only(plan(small._replace(choice=_plan.Choice(headroom_bytes=5 * GIB))))
    total = roomy["memory"]["CUDA0"]["total"]
    assert total + 5 * GIB <= 23.5 * GIB


# ---- verdicts


def test_too_little_memory() -> None:
    result = plan(host("h", [{"name": "a", "model": "gemma3-27b-real", **FIXED}], [device("CUDA0", 12)]))
    assert only(result)["verdict"] == "does not fit"
    assert result["hosts"][0]["verdict"] == "does not fit"
    assert "CUDA0 needs" in only(result)["reason"]
    assert result["summary"]["does_not_fit"] == 1
    (line,) = _plan.failures(result)
    assert line.startswith("h, a: does not fit: CUDA0 needs ")


def test_nothing_to_choose_fits() -> None:
    row = only(plan(host("h", [{"name": "a", "model": "gemma3-27b-real", **OPEN}], [device("CUDA0", 12)])))
    assert row["verdict"] == "does not fit"
    assert row["reason"]


def test_what_the_program_refuses() -> None:
    row = only(plan(host("h", [{"name": "a", "model": "llama31-8b-real", **FIXED}], [device("Vulkan0", 30, "vulkan")])))
    assert row["verdict"] == "refused"
    assert "flash attention" in row["reason"]


def test_what_starts_and_fails_later_is_refused_too() -> None:
    """The pairs that pass the test of the CUDA backend and have no decode kernel: accepted is false, starts is true."""
    options = {"ctx_size": 8192, "cache_type_k": "q8_0", "cache_type_v": "q4_0"}
    devices = [device("CUDA0", 23.5)]
    budget = _memory.memory_budget(
        info("llama31-8b-real")["model"],
        [{key: devices[0][key] for key in ("name", "backend", "total_bytes", "free_bytes")}],
        {**options, "fit": False},
    )
    row = only(plan(host("h", [{"name": "a", "model": "llama31-8b-real", **options}], devices)))
    assert (row["verdict"] == "fits") is budget["accepted"]


@pytest.mark.parametrize(
    ("instance", "verdict", "message"),
    [
        ({"name": "a", "model": "absent"}, "unknown", "model 'absent' is not in llama_model_files; listed are: broken"),
        ({"name": "a", "model": "broken"}, "unknown", "broken: not a GGUF file"),
        (
            {"name": "a", "model": GEMMA, "devices": ["CUDA7"]},
            "unknown",
            "device CUDA7 is not there; this host has CUDA0",
        ),
        ({"name": "a", "model": GEMMA, "backend": "tpu"}, "unknown", "backend 'tpu' must be one of cpu, cuda"),
        ({"name": "a", "model": GEMMA, "backend": "rocm"}, "unknown", "backend rocm has no device here"),
        ({"name": "a", "model": GEMMA, "extra_args": ["--ubatch-size"]}, "unknown", "--ubatch-size needs a value"),
        ({"model": GEMMA}, "unknown", "an instance has no name"),
        ({"name": "a", "model": GEMMA, **FIXED, "ctx_size": "lots"}, "refused", "option ctx_size is 'lots'"),
        ({"name": "a", "model": GEMMA, **FIXED, "cache_type_k": "q9"}, "refused", "option cache_type_k is 'q9'"),
        ({"name": "a", "model": GEMMA, **FIXED, "parallel": 0}, "refused", "option parallel is 0"),
    ],
)
def test_what_cannot_be_planned(instance: dict[str, Any], verdict: str, message: str) -> None:
    row = only(plan(host("h", [instance], [device("CUDA0", 23.5)])))
    assert row["verdict"] == verdict
    assert message in row["reason"]


def test_findings_of_the_header_count() -> None:
    reader = Reader()
    reader.checks = [
        {"level": "error", "code": "truncated", "message": "17 bytes are missing"},
        {"level": "warning", "code": "chat_template_missing", "message": "no template"},
        {"level": "info", "code": "trailing_bytes", "message": "seven more"},
    ]
    row = only(plan(host("h", [{"name": "a", "model": GEMMA, **FIXED}], [device("CUDA0", 23.5)]), reader=reader))
    assert (row["verdict"], row["reason"]) == ("refused", "17 bytes are missing")
    assert row["warnings"] == ["no template"]


def test_an_unknown_build_is_a_problem_of_the_host() -> None:
    result = plan(host("h", [{"name": "a", "model": GEMMA, **OPEN}], [], build="b1"))
    assert result["hosts"][0]["verdict"] == "unknown"
    assert "build 'b1' has no rules here; known are turboquant-69d8e4be, upstream-b11434" in _plan.failures(result)[0]


def test_a_host_that_could_not_be_read() -> None:
    result = plan(host("h", [{"name": "a", "model": GEMMA, **OPEN}], [], problem="its hardware could not be read"))
    assert _plan.failures(result) == ["h: its hardware could not be read"]
    assert result["summary"]["hosts_not_fitting"] == 1


# ---- several instances on one host


def test_instances_share_a_device() -> None:
    one = {"model": "llama31-8b-real", "ctx_size": 8192, "cache_type_k": "f16", "cache_type_v": "f16"}
    rows = [{"name": f"i{n}", **one} for n in range(4)]
    result = plan(host("h", rows, [device("CUDA0", 23.5)]))
    verdicts = [row["verdict"] for row in result["hosts"][0]["instances"]]
    each = result["hosts"][0]["instances"][0]["memory"]["CUDA0"]["total"]
    fitting = int(23.5 * GIB // each)
    assert 0 < fitting < 4
    assert verdicts == ["fits"] * fitting + ["does not fit"] * (4 - fitting)


def test_open_instances_share_what_the_fixed_ones_leave() -> None:
    rows = [
        {"name": "first", "model": "qwen36-27b-real", "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"name": "second", "model": "qwen36-27b-real", "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"name": "fixed", "model": "lfm2-1.2b-real", **FIXED, "cache_type_v": "q8_0"},
    ]
    result = plan(host("h", rows, [device("CUDA0", 44)]))
    first, second, fixed = result["hosts"][0]["instances"]
    assert [row["verdict"] for row in (first, second, fixed)] == ["fits"] * 3
    assert first["context"]["n_ctx"] < 262144
    # Equal models get about equal contexts, and neither has to go without.
    assert 0.7 < first["context"]["n_ctx"] / second["context"]["n_ctx"] < 1.4
    card = result["hosts"][0]["devices"][0]
    assert card["needed_bytes"] == sum(row["memory"]["CUDA0"]["total"] for row in (first, second, fixed))
    assert card["needed_bytes"] <= card["free_bytes"]


def test_a_stopped_instance_holds_nothing_and_an_absent_one_is_left_out() -> None:
    rows = [
        {"name": "a", "model": "llama31-8b-real", **FIXED, "state": "stopped"},
        {"name": "b", "model": "llama31-8b-real", **FIXED, "state": "absent"},
        {"name": "c", "model": "llama31-8b-real", **FIXED},
    ]
    result = plan(host("h", rows, [device("CUDA0", 10)]))
    planned = result["hosts"][0]
    assert [row["name"] for row in planned["instances"]] == ["a", "c"]
    assert planned["devices"][0]["needed_bytes"] == planned["instances"][1]["memory"]["CUDA0"]["total"]
    assert planned["verdict"] == "fits"


def test_several_devices_are_used_when_they_are_named() -> None:
    cards = [device("CUDA0", 23.5), device("CUDA1", 23.5)]
    base = {"name": "a", "model": "gemma3-27b-real", "ctx_size": 131072, "cache_type_k": "f16", "cache_type_v": "f16"}
    alone = only(plan(host("h", [base], cards)))
    assert (alone["devices"], alone["verdict"]) == (["CUDA0"], "does not fit")
    assert "uses CUDA0 only; list devices to use CUDA1 too" in alone["warnings"]
    both = only(plan(host("h", [{**base, "devices": ["CUDA0", "CUDA1"]}], cards)))
    assert (both["devices"], both["verdict"]) == (["CUDA0", "CUDA1"], "fits")
    assert min(both["memory"][name]["weights"] for name in both["devices"]) > 0


# ---- RAM


def test_ram_that_is_short() -> None:
    result = plan(host("h", [{"name": "a", "model": "llama31-8b-real", **FIXED}], [], ram=4))
    planned = result["hosts"][0]
    assert planned["verdict"] == "does not fit"
    assert planned["reason"].startswith("RAM: the instances need ")
    assert planned["ram"]["short_bytes"] > 0
    assert _plan.failures(result) == [f"h: {planned['reason']}"]


def test_an_open_instance_on_the_cpu_keeps_to_the_ram() -> None:
    rows = [{"name": "a", "model": "llama31-8b-real", "cache_type_k": "f16", "cache_type_v": "f16"}]
    result = plan(host("h", rows, [], ram=12))
    planned = result["hosts"][0]
    assert planned["verdict"] == "fits"
    assert planned["ram"]["needed_bytes"] <= planned["ram"]["usable_bytes"]
    assert planned["instances"][0]["context"]["n_ctx"] < 131072


def test_memory_that_a_gpu_maps_counts_as_ram() -> None:
    rows = [{"name": "a", "model": "gemma3-27b-real", **FIXED}]
    shared = plan(host("h", rows, [device("ROCm0", 20, "rocm", integrated=True)], ram=20))["hosts"][0]
    own = plan(host("h", rows, [device("ROCm0", 20, "rocm")], ram=20))["hosts"][0]
    assert shared["ram"]["mapped_by_gpus_bytes"] == shared["devices"][0]["needed_bytes"] > 0
    assert (own["ram"]["mapped_by_gpus_bytes"], own["verdict"]) == (0, "fits")
    assert shared["verdict"] == "does not fit"


@pytest.mark.parametrize(("ram", "usable"), [(10 * GIB, 9 * GIB), (128 * GIB, 120 * GIB), (80 * GIB, 72 * GIB)])
def test_the_systems_share_of_the_ram(ram: int, usable: int) -> None:
    assert _plan.ram_usable(ram) == usable


def test_what_grows_in_ram_is_told_apart() -> None:
    row = only(plan(host("h", [{"name": "a", "model": "llama31-8b-real", **FIXED, "cache_ram_mib": 8192}], [], ram=16)))
    assert row["memory"]["host"]["growing"] >= 8 * GIB
    assert row["verdict"] == "fits"


# ---- from the inventory's words to the planner's


def test_options_in_extra_args_count() -> None:
    words = [
        "-ub",
        "1024",
        "--no-mmap",
        "--temp",
        "0.7",
        "-ot",
        "a=CPU",
        "--override-tensor",
        "b=CPU",
        "-fa",
        "on",
        "-cmoe",
    ]
    assert _plan.options_of_arguments(words) == (
        {"ubatch_size": 1024, "mmap": False, "override_tensor": "a=CPU,b=CPU", "flash_attn": "on", "cpu_moe": True},
        [],
    )
    base = {"name": "a", "model": GEMMA, **FIXED}
    wide = only(plan(host("h", [{**base, "extra_args": ["-ub", "2048"]}], [device("CUDA0", 31)])))
    narrow = only(plan(host("h", [base], [device("CUDA0", 31)])))
    assert wide["memory"]["CUDA0"]["compute"] > 2 * narrow["memory"]["CUDA0"]["compute"]


def test_every_argument_is_one_that_the_predictor_knows() -> None:
    assert {name for name, _ in _plan.ARGUMENTS.values()} <= set(_memory.OPTIONS)


def test_fields_of_an_instance_become_options() -> None:
    instance = {"load_mode": "none", "n_gpu_layers": "all", "cache_ram_mib": 64, "parallel": 2, "env": {"A": 1}}
    options = _plan.instance_options(instance, [device("CUDA0", 8)])
    assert options["mmap"] is False
    assert "n_gpu_layers" not in options
    assert (options["cache_ram"], options["parallel"], options["fit"]) == (64, 2, False)
    assert _plan.instance_options({"load_mode": "mmap+mlock"}, [])["mmap"] is True
    assert _plan.instance_options({}, [])["n_gpu_layers"] == 0
    assert _plan.environment_of({**instance, "turbo_layer_adaptive": 0}) == {"A": "1", "TURBO_LAYER_ADAPTIVE": "0"}


def test_a_projector_takes_the_size_of_its_file() -> None:
    rows = [{"name": "a", "model": GEMMA, **FIXED, "mmproj": "lfm2-1.2b-real"}]
    row = only(plan(host("h", rows, [device("CUDA0", 23.5)])))
    bare = only(plan(host("h", [{"name": "a", "model": GEMMA, **FIXED}], [device("CUDA0", 23.5)])))
    size = info("lfm2-1.2b-real")["model"]["file_bytes"]
    assert row["memory"]["CUDA0"]["total"] - bare["memory"]["CUDA0"]["total"] == size


def test_backends_that_the_build_lacks_leave_devices_out() -> None:
    rows = [{"name": "a", "model": "lfm2-1.2b-real", **FIXED}]
    row = only(plan(host("h", rows, [device("CUDA0", 8)], backends=[])))
    assert row["devices"] == []
    said, second_form = row["warnings"]
    assert said == "runs on the CPU: llama_build_backends leaves out CUDA0"
    assert "CPU_REPACK" in second_form
    assert only(plan(host("h", rows, [device("CUDA0", 8)], backends=["cuda"])))["devices"] == ["CUDA0"]
    assert only(plan(host("h", [{**rows[0], "backend": "cpu"}], [device("CUDA0", 8)])))["devices"] == []


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("CUDA0", "plan_devices is 'CUDA0', but must be a list"),
        (["CUDA0"], "plan_devices has 'CUDA0', but each entry must be"),
        ([{"name": "CUDA0", "vram": 24}], "has an entry with vram; known are name, backend"),
        ([{"name": "gpu"}], "has an entry named 'gpu'; name it as llama-server does"),
        ([{"name": "Metal0", "total_gib": 8}], "Metal0 has the backend 'metal'; it must be cuda, rocm or vulkan"),
        ([{"name": "CUDA0"}], "CUDA0 has neither total_bytes nor total_gib"),
        ([{"name": "CUDA0", "total_gib": 8, "total_bytes": 9}], "CUDA0 has both total_bytes and total_gib"),
        ([{"name": "CUDA0", "total_gib": "8 GB"}], "total_gib of CUDA0 is '8 GB', but must be a number above 0"),
        ([{"name": "CUDA0", "total_gib": -1}], "total_gib of CUDA0 is -1"),
        ([{"name": "CUDA0", "total_gib": True}], "total_gib of CUDA0 is True"),
        ([{"name": "CUDA0", "total_gib": 8, "free_gib": 9}], "bytes free of"),
        ([{"name": "CUDA0", "total_gib": 8}, {"name": "CUDA0", "total_gib": 8}], "names CUDA0 twice"),
    ],
)
def test_declared_devices_that_are_refused(entries: Any, message: str) -> None:
    with pytest.raises(_plan.PlanError) as caught:
        _plan.declared_devices(entries)
    assert message in str(caught.value)


def test_declared_devices() -> None:
    assert _plan.declared_devices(
        [
            {"name": "ROCm0", "total_gib": "1.5", "integrated": True},
            {"name": "CUDA1", "total_bytes": 9, "free_bytes": 7},
        ]
    ) == [
        {
            "name": "ROCm0",
            "backend": "rocm",
            "total_bytes": 3 * GIB // 2,
            "free_bytes": 3 * GIB // 2,
            "integrated": True,
        },
        {"name": "CUDA1", "backend": "cuda", "total_bytes": 9, "free_bytes": 7, "integrated": False},
    ]


# ---- the whole


def test_the_shape_of_the_plan() -> None:
    """plan.json is read by other programs: what it holds may grow, not change."""
    result = plan(host("h", [{"name": "a", "model": GEMMA, **OPEN}], [device("CUDA0", 23.5)]))
    result = json.loads(json.dumps(result))
    assert sorted(result) == ["hosts", "models", "plots", "summary", "version"]
    assert result["version"] == 1
    assert sorted(result["summary"]) == [
        "does_not_fit",
        "fits",
        "hosts",
        "hosts_not_fitting",
        "instances",
        "refused",
        "unknown",
        "warnings",
    ]
    planned = result["hosts"][0]
    assert sorted(planned) == [
        "build",
        "build_name",
        "devices",
        "instances",
        "name",
        "notes",
        "ram",
        "reason",
        "verdict",
    ]
    assert sorted(planned["devices"][0]) == [
        "backend",
        "free_bytes",
        "integrated",
        "name",
        "needed_bytes",
        "total_bytes",
    ]
    assert sorted(planned["ram"]) == [
        "growing_bytes",
        "mapped_by_gpus_bytes",
        "needed_bytes",
        "reserve_bytes",
        "short_bytes",
        "total_bytes",
        "usable_bytes",
    ]
    row = planned["instances"][0]
    assert sorted(row) == [
        "auto",
        "build",
        "caches",
        "considered",
        "context",
        "devices",
        "digest",
        "env",
        "memory",
        "model",
        "name",
        "notes",
        "options",
        "plot",
        "reason",
        "state",
        "verdict",
        "warnings",
    ]
    parts = ["compute", "kv", "other", "output", "recurrent", "total", "weights"]
    assert sorted(row["memory"]["CUDA0"]) == parts
    assert sorted(row["memory"]["host"]) == sorted([*parts, "growing"])
    assert all(
        sum(v for k, v in part.items() if k in parts[:-2] + parts[-1:]) == part["total"]
        for part in row["memory"].values()
    )
    assert sorted(result["plots"][row["plot"]]) == ["context", "device", "limit_bytes", "lines", "type_k", "type_v"]
    assert sorted(result["models"][row["digest"]]) == [
        "architecture",
        "checks",
        "file_bytes",
        "header_bytes",
        "name",
        "sha256",
        "tensors",
    ]


def test_the_plot_crosses_the_limit_where_the_choice_stops() -> None:
    result = plan(
        host(
            "h",
            [{"name": "a", "model": "gemma3-27b-real", "cache_type_k": "q8_0", "cache_type_v": "q8_0"}],
            [device("CUDA0", 21)],
        )
    )
    row = only(result)
    plot = result["plots"][row["plot"]]
    line = next(x for x in plot["lines"] if (x["type_k"], x["type_v"]) == ("q8_0", "q8_0"))
    assert plot["limit_bytes"] == 21 * GIB
    assert all(b >= a for (_, a), (_, b) in zip(line["points"], line["points"][1:]))
    assert len(line["points"]) > 20
    within = max(size for size, nbytes in line["points"] if nbytes + _fit.HEADROOM_BYTES <= plot["limit_bytes"])
    beyond = min(size for size, nbytes in line["points"] if nbytes + _fit.HEADROOM_BYTES > plot["limit_bytes"])
    assert within <= row["context"]["n_ctx"] < beyond


def test_contexts_of_a_plot() -> None:
    assert _plan.contexts(32768) == [2048, 4096, 8192, 16384, 32768]
    assert _plan.contexts(40960) == [2048, 4096, 8192, 16384, 32768, 40960]
    assert _plan.contexts(1000) == [1000]


def test_what_lies_between_the_points_of_a_plot_is_right() -> None:
    points = [(2048, 100), (8192, 700)]
    assert _plan.between(points)[4] == [4096, 300]
    assert _plan.between(points)[-1] == [8192, 700]
    assert _plan.between(points[:1]) == [[2048, 100]]


@pytest.mark.parametrize("name", [GEMMA, "llama31-8b-real", "qwen36-27b-real"])
@pytest.mark.parametrize("cards", [1, 2])
def test_the_lines_of_a_plot_are_what_memory_budget_says(name: str, cards: int) -> None:
    """Within two percent for every pair, at the ends and at a context that is none of those computed."""
    devices = [device(f"CUDA{number}", 23.5) for number in range(cards)]
    row = {"name": "a", "model": name, **FIXED, "devices": [card["name"] for card in devices]}
    result = plan(host("h", [row], devices))
    plot = result["plots"]["p0"]
    assert len(plot["lines"]) >= 6
    ample = [{"name": c["name"], "backend": "cuda", "total_bytes": 2**55, "free_bytes": 2**55} for c in devices]
    for line in plot["lines"]:
        for size, drawn in (line["points"][0], line["points"][9], line["points"][-1]):
            options = {"ctx_size": size // 256 * 256, "cache_type_k": line["type_k"], "cache_type_v": line["type_v"]}
            budget = _memory.memory_budget(info(name)["model"], ample, {**options, "parallel": 1, "fit": False})
            real = budget["devices"][plot["device"]]["total"]
            assert abs(drawn - real) < 0.02 * real


def test_the_table() -> None:
    rows = _plan.table(
        plan(
            host(
                "h", [{"name": "a", "model": GEMMA, **FIXED}, {"name": "b", "model": "absent"}], [device("CUDA0", 23.5)]
            ),
            host("c", [{"name": "a", "model": "lfm2-1.2b-real", **FIXED}], []),
            host("p", [{"name": "a", "model": GEMMA, **OPEN}], [], problem="not reached"),
        )
    )
    assert all(len(row) == len(_plan.COLUMNS) for row in rows)
    assert [(row[0], row[2], row[4], row[5], row[-1]) for row in rows] == [
        ("h", "CUDA0", "32768", "q8_0/turbo4", "fits"),
        ("h", "-", "", "", "unknown"),
        ("c", "RAM", "32768", "q8_0/turbo4", "fits"),
        ("p", "-", "", "", "unknown"),
    ]


def test_a_header_is_read_once_and_like_hosts_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = _memory.memory_budget
    monkeypatch.setattr(_memory, "memory_budget", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    reader = Reader()
    one = host("h0", [{"name": "a", "model": GEMMA, **OPEN}], [device("CUDA0", 23.5)])
    plan(one, reader=reader)
    alone = len(calls)
    began = time.perf_counter()
    result = plan(*[one._replace(name=f"h{n}") for n in range(2000)], reader=reader)
    assert len(calls) == 2 * alone
    assert reader.read == [GEMMA, GEMMA]
    assert [planned["name"] for planned in result["hosts"]] == [f"h{n}" for n in range(2000)]
    assert time.perf_counter() - began < 20


def test_the_token_is_no_part_of_the_plan() -> None:
    files = {GEMMA: {**FILES[GEMMA], "token": "hf_secret", "sha256": None}}
    result = plan(host("h", [{"name": "a", "model": GEMMA, **FIXED}], [device("CUDA0", 23.5)])._replace(files=files))
    assert only(result)["verdict"] == "fits"
    assert "hf_secret" not in json.dumps(result)


def test_plain_strips_what_ansible_adds() -> None:
    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    found = _plan.plain({Text("a"): [Number(3), Text("b"), True, None, 1.5, (1,)]})
    assert found == {"a": [3, "b", True, None, 1.5, [1]]}
    assert [type(item) for item in found["a"]] == [int, str, bool, type(None), float, list]
