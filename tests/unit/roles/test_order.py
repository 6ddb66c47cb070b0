# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role chooses or lists is the same in every run.

Ansible's filters intersect, union, difference and symmetric_difference go through Python's sets, whose order is
another in each process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = ROOT / "roles"

# By host the backends that gpu_info names of each GPU, and what `auto` is to take.
HOSTS: dict[str, tuple[list[list[str]], str]] = {
    "geforce": ([["cuda", "vulkan"]], "cuda"),
    "radeon": ([["rocm", "vulkan"]], "rocm"),
    "both": ([["rocm", "vulkan"], ["cuda", "vulkan"]], "cuda"),
    "old": ([["vulkan"]], "vulkan"),
    "none": ([], "cpu"),
}


def rendered(folder: Path, seed: str, variables: Path, expression: str, hosts: dict[str, dict]) -> dict[str, object]:
    """Return by host what an expression of a role's variables is, in a process with that order of sets."""
    place = f"{folder}/{{{{ inventory_hostname }}}}.json"
    keep = {"content": f"{{{{ {expression} | to_json }}}}", "dest": place, "mode": "0644"}
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars_files": [str(variables)],
        "tasks": [{"ansible.builtin.copy": keep}],
    }
    (folder / "play.json").write_text(json.dumps([play]), encoding="utf-8")
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": local}}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(folder / "hosts.json"), str(folder / "play.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONHASHSEED": seed},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in hosts}


@pytest.mark.parametrize("seed", ["0", "1"])
def test_auto_is_the_fastest_backend_in_every_run(seed, tmp_path):
    hosts = {
        name: {"toolchain_backend": "auto", "__toolchain_gpu_info": {"gpus": [{"backends": gpu} for gpu in gpus]}}
        for name, (gpus, _wanted) in HOSTS.items()
    }
    got = rendered(tmp_path, seed, ROLES / "toolchain/vars/main.yml", "__toolchain_backend", hosts)
    assert got == {name: wanted for name, (_gpus, wanted) in HOSTS.items()}


def after_call(text: str, start: int) -> str:
    """Return what follows the closing parenthesis of a filter's arguments, which begin at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return text[place + 1 :]
    raise AssertionError(f"no end of {text[start : start + 40]!r}")


def expressions(value: object) -> list[str]:
    """Return every string of a YAML document."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in expressions(item)]
    if isinstance(value, list):
        return [text for item in value for text in expressions(item)]
    return [value] if isinstance(value, str) else []


def test_of_sets_only_the_number_is_taken():
    # There they are keys that a mapping has already, and of a thousand hosts the sets are faster than a list.
    keys = ROOT / "playbooks/vars/table.yml"
    for path in sorted({*ROLES.rglob("*.yml"), *(ROOT / "playbooks").rglob("*.yml")} - {keys}):
        for text in expressions(yaml.safe_load(path.read_text(encoding="utf-8"))):
            for found in re.finditer(r"\|\s*(?:intersect|union|(?:symmetric_)?difference)(?=\()", text):
                assert re.match(r"\s*\|\s*length\b", after_call(text, found.end())), (
                    f"{path}: {text.strip()}\nThe order of {found[0]} is another in each run: take select('in', ...) "
                    "or reject('in', ...), which keep the order of what they are given"
                )
