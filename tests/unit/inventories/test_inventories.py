# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every inventory can be copied and run: same groups, proved models, and a plan that fits without touching a host."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.manager import VariableManager
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_flags, _server_instance, _toolchain
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances

TREE = Path(__file__).resolve().parents[3]
HARDWARE = {"strix_halo", "rtx_4090", "rtx_5090", "dgx_spark", "radeon_7900", "radeon_r9700"}
BACKENDS = {"cuda", "rocm", "vulkan", "cpu"}
FEATURES = {"llamafleet", "servers", "builders", "gtt_memory", *BACKENDS}
KINDS = sorted(HARDWARE | {"mixed_fleet"})

# Published geometry of the models that the inventories serve; tests/data/oracle/README.md tells where it is from.
GEOMETRY = {"gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf": "gemma4-26b-a4b-real"}


class Inventory:
    def __init__(self, kind):
        self.loader = DataLoader()
        self.manager = InventoryManager(loader=self.loader, sources=[str(TREE / "inventories" / kind)])
        self.variables = VariableManager(loader=self.loader, inventory=self.manager)

    @property
    def groups(self):
        return set(self.manager.groups) - {"all", "ungrouped"}

    def names(self, group):
        return {host.name for host in self.manager.groups[group].get_hosts()}

    def of(self, host):
        return self.variables.get_vars(host=self.manager.get_host(host), include_hostvars=False)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def inventory(kind):
    return Inventory(kind)


def test_each_has_every_group_and_no_other(inventory):
    assert inventory.groups == HARDWARE | FEATURES


def test_hosts_are_where_they_belong(kind, inventory):
    everyone = {host.name for host in inventory.manager.get_hosts()}
    assert everyone
    assert inventory.names("llamafleet") == everyone
    kinds = HARDWARE if kind == "mixed_fleet" else {kind}
    assert {group for group in HARDWARE if inventory.names(group)} == kinds
    assert inventory.names("servers") == set().union(*(inventory.names(group) for group in kinds))
    assert inventory.names("gtt_memory") == inventory.names("strix_halo"), "only APUs map system memory"
    for host in everyone:
        backends = {group for group in BACKENDS if host in inventory.names(group)}
        assert len(backends) == 1, f"{host} has {backends}"
        values = inventory.of(host)
        assert values["llama_build_backends"] == sorted(backends)
        assert {values["toolchain_backend"], values["llama_server_backend"]} == backends
    for host in inventory.names("servers"):
        builder = inventory.of(host).get("llama_build_host")
        assert (builder is not None) == (kind == "mixed_fleet")
        if builder:
            assert builder in inventory.names("builders")
            assert inventory.of(builder)["llama_build_backends"] == inventory.of(host)["llama_build_backends"]


def test_what_builds_each_kind_can_be_had_on_the_newest_fedora(inventory):
    for host in inventory.names("servers"):
        builder = inventory.of(host).get("llama_build_host") or host
        values = inventory.of(builder)
        method = values.get("toolchain_method", "packages")
        machine = "aarch64" if host in inventory.names("dgx_spark") else "x86_64"
        plan = _toolchain.toolchain_plan(44, values["toolchain_backend"], method=method, machine=machine)
        assert plan["supported"], f"{builder}: {plan['reason']}"
        # What conda builds looks for its libraries in the same folder on each host.
        assert inventory.of(host).get("toolchain_method", "packages") == method


def test_models_are_pinned_and_choices_left_to_the_planner(inventory):
    for host in inventory.names("servers"):
        values = inventory.of(host)
        files = {entry["name"]: entry for entry in values["llama_model_files"]}
        for entry in files.values():
            assert re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])
            assert re.fullmatch(r"hf:[\w./-]+/" + re.escape(entry["name"]) + r"@[0-9a-f]{40}", entry["url"])
            assert entry["bytes"] > 1 << 30
        for instance in values["llama_server_instances"]:
            assert instance["model"] in files
            assert {instance[key] for key in ("ctx_size", "cache_type_k", "cache_type_v")} == {"auto"}
            assert instance["host"] == "127.0.0.1"


# By the beginning of a file's name: what the model's card says of sampling.
CARDS = {"gemma-4-": {"temperature": 1.0, "top_p": 0.95, "top_k": 64}}
HELP = TREE / "tests/data/llama-server/help-b10434.txt"


def test_requests_are_sampled_as_the_card_says(inventory):
    for host in inventory.names("servers"):
        for instance in inventory.of(host)["llama_server_instances"]:
            (card,) = [values for name, values in CARDS.items() if instance["model"].startswith(name)]
            assert instance["sampling"] == card
            settled = {**instance, "ctx_size": 4096, "cache_type_k": "f16", "cache_type_v": "f16"}
            item = _server_instance.complete(settled, llama_instances.DEFAULTS)
            options = _server_flags.parse_help(HELP.read_text(encoding="utf-8"))
            words = " ".join(_server_flags.command_line(options, {**item, "model_path": "/m.gguf"}))
            assert "--temp 1.0 --top-p 0.95 --top-k 64" in words


def test_one_folder_is_all_that_a_person_copies(kind):
    for path in (TREE / "inventories" / kind).rglob("*"):
        assert not path.is_symlink()
        if path.is_file():
            assert ".." not in re.findall(r"[^\s'\"]*/[^\s'\"]*", path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def header_cache(tmp_path_factory):
    """What plan.yml would have kept of the models' headers."""
    folder = tmp_path_factory.mktemp("headers")
    for name, geometry in GEOMETRY.items():
        for kind in KINDS:
            inventory = Inventory(kind)
            for host in inventory.names("servers"):
                entry = next(item for item in inventory.of(host)["llama_model_files"] if item["name"] == name)
                with gzip.open(TREE / f"tests/data/oracle/models/{geometry}.json.gz", "rt") as stream:
                    model = json.load(stream)
                with gzip.open(folder / f"{entry['sha256']}-turboquant-69d8e4be.json.gz", "wt") as stream:
                    json.dump({"model": model, "checks": []}, stream)
    return folder


def plan(kind, header_cache, folder, *extra):
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        *("-i", str(TREE / "inventories" / kind), str(TREE / "playbooks" / "plan.yml")),
        *("-e", "plan_offline=true", "-e", f"plan_header_cache={header_cache}", "-e", f"plan_dir={folder}"),
        *extra,
    ]
    env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "ansible")}
    return subprocess.run(command, cwd=TREE, env=env, capture_output=True, text=True, check=False)


def test_the_plan_is_green_without_touching_a_host(header_cache, tmp_path):
    """One plan stands for all of them, because the hosts of each have the same variables in mixed_fleet."""
    mixed = Inventory("mixed_fleet")
    done = plan("mixed_fleet", header_cache, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["hosts"]}
    assert set(rows) == mixed.names("servers")
    for row in rows.values():
        for instance in row["instances"]:
            assert instance["verdict"] == "fits", instance
            assert instance["context"]["n_ctx"] >= 131072, "every one of these machines has room for a long context"
    for kind in sorted(HARDWARE):
        inventory = Inventory(kind)
        for host in inventory.names("servers"):
            assert host in rows
            assert planned_from(inventory, host) == planned_from(mixed, host)


def planned_from(inventory, host):
    """The variables of a host, without where it stands and which builder compiles for it."""
    elsewhere = {"group_names", "groups", "inventory_dir", "inventory_file", "llama_build_host"}
    return {name: value for name, value in inventory.of(host).items() if name not in elsewhere}


def test_a_plan_that_does_not_fit_is_red(header_cache, tmp_path):
    small = '{"plan_devices": [{"name": "CUDA0", "backend": "cuda", "total_gib": 12}]}'
    done = plan("rtx_4090", header_cache, tmp_path, "-e", small)
    assert done.returncode != 0
    assert "gemma" in done.stdout
