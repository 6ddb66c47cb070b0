# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What build.yml tells a builder of the hosts that will run its builds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
PLAY = "Bring the builders their compilers"
BUILD = "Build once for each kind"


def kind(
    name: str,
    *,
    cuda: tuple[str, ...] = (),
    gfx: tuple[str, ...] = (),
    drivers: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
    rocwmma: bool = False,
) -> dict:
    return {
        "llama_build_kind": {
            "kind": name,
            "backends": ["cpu", *(["cuda"] if cuda else []), *(["rocm"] if gfx else []), *more],
            "cuda_architectures": list(cuda),
            "gpu_targets": list(gfx),
            "nvidia_drivers": list(drivers),
            "rocwmma": rocwmma,
        }
    }


SERVERS = {
    "ada-new": {"llama_build_host": "builder", **kind("a", cuda=("89-real",), drivers=("595.58.03",))},
    "ada-old": {"llama_build_host": "builder", **kind("a", cuda=("89-real",), drivers=("570.124.06",))},
    "blackwell": {"llama_build_host": "builder", **kind("b", cuda=("120f",), drivers=("580.95.05",))},
    "own": {"toolchain_backend": "cuda", **kind("c", cuda=("86",), drivers=("1010.1", "999.2"))},
    "own-too": {"toolchain_backend": "cuda", **kind("c", cuda=("86",), drivers=("580.95.05",))},
    "radeon": {"toolchain_backend": "rocm", **kind("d", gfx=("gfx90a:xnack-", "gfx1151"))},
    "plain": {"toolchain_backend": "cpu", **kind("e")},
    # Kinds more for one builder, which itself says nothing of what it builds. rocWMMA is right for one of the GPUs.
    "arc": {"llama_build_host": "both", **kind("f", more=("vulkan",))},
    "halo": {"llama_build_host": "both", "llama_build_rocwmma": True, **kind("g", gfx=("gfx1151",), rocwmma=True)},
    "r9700": {"llama_build_host": "both", **kind("h", gfx=("gfx1201",))},
    "navi": {"llama_build_host": "both", **kind("i", gfx=("gfx1030",))},
}
BUILDERS = {"builder": {"toolchain_backend": "cuda"}, "both": {}}


def served(folder: Path) -> dict[str, dict]:
    """Return of each builder what the play itself tells it, and what the role toolchain plans of that on Fedora 43."""
    (play,) = [play for play in yaml.safe_load((ROOT / "playbooks/build.yml").read_text()) if play.get("name") == PLAY]
    play.pop("roles")
    role = ROOT / "roles/toolchain"
    play["vars_files"] = [str(role / "vars/main.yml"), *(str(ROOT / "playbooks" / path) for path in play["vars_files"])]
    play["hosts"] = "builder:both:own:radeon:plain"
    place = f"{folder}/{{{{ inventory_hostname }}}}.json"
    told = "{{ {'served': toolchain_served, 'plan': __toolchain_plan} | to_json }}"
    play["tasks"] = [
        {"ansible.builtin.set_fact": {"__toolchain_host": {"release": 43, "machine": "x86_64"}}},
        {"ansible.builtin.copy": {"content": told, "dest": place, "mode": "0644"}, "delegate_to": "localhost"},
    ]
    run(folder, play, yaml.safe_load((role / "defaults/main.yml").read_text()))
    names = ("builder", "both", "own", "radeon", "plain")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def run(folder: Path, play: dict, more: dict) -> None:
    (folder / "play.json").write_text(json.dumps([play]), encoding="utf-8")
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    groups = {"servers": {"hosts": SERVERS}, "builders": {"hosts": BUILDERS}}
    inventory = {"all": {"children": groups, "vars": {**more, **local}, "hosts": {"localhost": None}}}
    (folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            "--inventory",
            str(folder / "hosts.json"),
            str(folder / "play.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_builder_learns_what_its_hosts_have(tmp_path):
    told = served(tmp_path)
    found = {name: said["served"] for name, said in told.items()}
    assert found["builder"] == {
        "gpu_targets": ["89", "120"],
        "driver_version": "570.124.06",
        "backends": ["cpu", "cuda"],
        "rocwmma_targets": [],
    }
    # Versions are compared as numbers, and hosts of the same kind run the same build.
    assert found["own"]["gpu_targets"] == ["86"]
    assert found["own"]["driver_version"] == "580.95.05"
    assert found["radeon"]["gpu_targets"] == ["gfx90a", "gfx1151"]
    assert found["radeon"]["driver_version"] == ""
    assert found["plain"] == {"gpu_targets": [], "driver_version": "", "backends": ["cpu"], "rocwmma_targets": []}
    assert found["both"] == {
        "gpu_targets": ["gfx1151", "gfx1201", "gfx1030"],
        "driver_version": "",
        "backends": ["cpu", "rocm", "vulkan"],
        "rocwmma_targets": ["gfx1151"],
    }
    # One host that wants rocWMMA is no reason to refuse what the others need.
    plan = told["both"]["plan"]
    assert plan["supported"], plan["reason"]
    assert "rocwmma-devel" in plan["packages"]["backend"]
    assert "rocwmma-devel" not in told["radeon"]["plan"]["packages"]["backend"]


def test_all_kinds_are_built_at_the_same_time(tmp_path):
    (play,) = [play for play in yaml.safe_load((ROOT / "playbooks/build.yml").read_text()) if play.get("name") == BUILD]
    leaders = {entry["llama_build_kind"]["kind"]: name for name, entry in reversed(SERVERS.items())}
    # A role in place of the real one, whose task ends when those of all kinds have begun.
    tasks = tmp_path / "roles" / "rendezvous" / "tasks"
    tasks.mkdir(parents=True)
    begun = (
        "import pathlib, sys, time; me, builder, folder, count = sys.argv[1:]; here = pathlib.Path(folder); "
        "(here / me).write_text(builder); end = time.monotonic() + 60\n"
        "while len(list(here.iterdir())) < int(count): assert time.monotonic() < end, 'they wait'; time.sleep(0.1)"
    )
    words = ["{{ inventory_hostname }}", "{{ toolchain_result.of }}", "{{ met }}", str(len(leaders))]
    meet = {"ansible.builtin.command": {"argv": ["{{ ansible_playbook_python }}", "-c", begun, *words]}}
    (tasks / "main.yml").write_text(json.dumps([meet]), encoding="utf-8")
    (include,) = play["tasks"][0]["block"]
    assert include["ansible.builtin.include_role"] == {"name": "llamafleet.turboquant.llama_build"}
    include["ansible.builtin.include_role"]["name"] = "rendezvous"
    for kind_of in SERVERS.values():
        kind_of["llama_build_kind"]["cache_type_pairs"] = []

    (tmp_path / "met").mkdir()
    run(
        tmp_path,
        play,
        {
            "llama_build_leaders": leaders,
            "met": str(tmp_path / "met"),
            "toolchain_result": {"of": "{{ inventory_hostname }}"},
        },
    )
    found = {path.name: path.read_text() for path in (tmp_path / "met").iterdir()}
    assert found == {
        "ada-new": "builder", "blackwell": "builder", "own": "own", "radeon": "radeon", "plain": "plain", "arc": "both",
        "halo": "both", "r9700": "both", "navi": "both",
    }  # fmt: skip
