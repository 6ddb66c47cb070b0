# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role toolchain asks the package manager for, and when.

The role's own tasks run on this machine, which is told to be a Fedora, with a double in place of dnf, of its
repositories and of rpm's keys. The double knows what is there: a vendor's package needs the vendor's repository, a key
needs gnupg2. The scenario toolchain does the same with the real ones, where it can have them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _toolchain

ROOT = Path(__file__).resolve().parents[3]
# The tasks' modules that change a host, and the vendors' packages.
DOUBLED = ("dnf5", "yum_repository", "rpm_key")
Calls = list[tuple[str, dict[str, Any]]]
VENDORS = ("cuda-", "libcublas-", "hip-", "rocm-hip-runtime")
DOUBLE = """\
#!{python}
# WANT_JSON
import json, pathlib, sys
module, place, vendors = {module!r}, pathlib.Path({place!r}), {vendors!r}
given = json.loads(pathlib.Path(sys.argv[1]).read_text())
arguments = {{name: value for name, value in given.items() if not name.startswith("_ansible")}}
with (place / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([module, arguments]) + "\\n")
state = json.loads((place / "state.json").read_text())
names = arguments["key" if module == "rpm_key" else "name"]
names = [names] if isinstance(names, str) else names
lacking = []
if module == "dnf5" and not state["yum_repository"]:
    lacking = [name for name in names if name.startswith(vendors)]
if module == "rpm_key" and "gnupg2" not in state["dnf5"]:
    lacking = ["gpg2"]
new = [name for name in names if name not in state[module]]
if not lacking and not given["_ansible_check_mode"]:
    state[module] += new
    (place / "state.json").write_text(json.dumps(state))
said = "No match for argument: " + " ".join(lacking)
print(json.dumps({{"failed": bool(lacking), "changed": bool(new), "msg": said}}))
"""


class Host:
    """A bare Fedora 44 for the role."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        role = folder / "roles/toolchain"
        shutil.copytree(ROOT / "roles/toolchain", role)
        for path in (role / "tasks").glob("*.yml"):
            text = path.read_text(encoding="utf-8")
            for module in DOUBLED:
                text = text.replace(f"ansible.builtin.{module}:", f"double_{module}:")
            path.write_text(text, encoding="utf-8")
        (role / "library").mkdir()
        for module in DOUBLED:
            text = DOUBLE.format(python=sys.executable, module=module, place=str(folder), vendors=VENDORS)
            (role / "library" / f"double_{module}.py").write_text(text, encoding="utf-8")
        (folder / "bin").mkdir()
        # Nothing is installed that it is asked for.
        (folder / "bin/rpm").write_text("#!/bin/sh\n", encoding="utf-8")
        (folder / "bin/rpm").chmod(0o755)
        (folder / "state.json").write_text(json.dumps({module: [] for module in DOUBLED}))

    def run(
        self, *options: str, entry_point: str = "main", status: int = 0, **variables: Any
    ) -> list[tuple[str, dict]]:
        """Run the role, and return which of the doubled modules were called with what."""
        facts = {
            "architecture": "x86_64",
            "distribution": "Fedora",
            "distribution_version": "44",
            "distribution_major_version": "44",
        }
        role = {"name": "toolchain", "tasks_from": entry_point}
        tasks = [{"ansible.builtin.set_fact": {**facts, "cacheable": True}}, {"ansible.builtin.include_role": role}]
        if entry_point == "main":
            keep = {"content": "{{ toolchain_result | to_json }}", "dest": str(self.folder / "result.json")}
            tasks.append({"ansible.builtin.copy": {**keep, "mode": "0644"}, "check_mode": False})
        play = {"hosts": "localhost", "gather_facts": False, "tasks": tasks}
        (self.folder / "play.json").write_text(json.dumps([play]), encoding="utf-8")
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
        (self.folder / "vars.json").write_text(json.dumps({**local, **variables}), encoding="utf-8")
        calls = self.folder / "calls.jsonl"
        calls.write_text("", encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-e", "@vars.json", *options, "play.json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_ROLES_PATH": str(self.folder / "roles"),
                "ANSIBLE_NOCOLOR": "1",
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            },
        )
        # Long lines are wrapped.
        self.said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == status, done.stdout + done.stderr
        return [tuple(json.loads(line)) for line in calls.read_text(encoding="utf-8").splitlines()]

    def result(self) -> dict:
        return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def transactions(calls: Calls) -> list[Any]:
    """Return the names that dnf was given, call by call."""
    return [arguments["name"] for module, arguments in calls if module == "dnf5"]


def test_amds_packages_are_taken_before_fedoras(host):
    calls = host.run(toolchain_backend="rocm", toolchain_rocm_source="amd", toolchain_gpu_targets=["gfx1151"])
    (repository,) = [arguments for module, arguments in calls if module == "yum_repository"]
    assert repository["name"] == "rocm-7.2.4"
    assert int(repository["priority"]) == 50
    # A site may have its own number.
    mirror = {"baseurl": "https://mirror.example/rocm", "priority": "7"}
    calls = host.run(
        toolchain_backend="rocm",
        toolchain_rocm_source="amd",
        toolchain_gpu_targets=["gfx1151"],
        toolchain_rocm_repository=mirror,
    )
    (repository,) = [arguments for module, arguments in calls if module == "yum_repository"]
    assert int(repository["priority"]) == 7


CUDA = {
    "toolchain_backend": "cuda",
    "toolchain_gpu_targets": ["8.9"],
    "toolchain_cuda_gcc_copr": False,
    "toolchain_packages": ["gcc15-c++", "cuda-nvcc-13-4"],
}


def test_a_list_of_ones_own_may_name_the_vendors_packages(host):
    calls = host.run(**CUDA)
    assert [module for module, _arguments in calls] == ["dnf5", "rpm_key", "yum_repository", "dnf5"]
    assert transactions(calls) == [["gnupg2"], CUDA["toolchain_packages"]]
    assert host.result()["packages"] == CUDA["toolchain_packages"], "nothing else is for the role to take back"
    host.run(**CUDA)
    assert " changed=0 " in host.said


def test_check_mode_foresees_such_a_list_on_a_bare_host(host):
    calls = host.run("--check", **CUDA)
    assert transactions(calls) == [["gnupg2"]]
    assert "check mode cannot ask them: gcc15-c++, cuda-nvcc-13-4" in host.said


def test_a_site_with_repositories_of_its_own_needs_nothing_to_read_keys(host):
    calls = host.run(**CUDA | {"toolchain_manage_repositories": False, "toolchain_packages": ["gcc15-c++"]})
    assert transactions(calls) == [["gcc15-c++"]]


@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_a_list_of_ones_own_is_installed_where_there_is_no_repository(backend, host):
    calls = host.run(toolchain_backend=backend, toolchain_packages=["my-compiler"], toolchain_packages_extra=["jq"])
    assert transactions(calls) == [["my-compiler", "jq"]]


def test_the_planned_packages_come_before_the_repositories(host):
    base, backend = transactions(host.run(**CUDA | {"toolchain_packages": []}))
    assert {"cmake", "gnupg2"} <= {*base}
    assert "cuda-nvcc-13-4" in backend
    assert {*base, *backend} - {"gnupg2"} == {*host.result()["packages"]}


def built(method: str) -> dict[str, Any]:
    """Return what a builder's toolchain says of itself."""
    plan = _toolchain.toolchain_plan(44, "cuda", method=method, gpu_targets=["8.9"])
    return {key: plan[key] for key in ("method", "backends", "conda")}


@pytest.mark.parametrize(("own", "builders"), [("conda", "packages"), ("packages", "conda")])
def test_a_host_gets_no_libraries_of_another_method_than_its_own(own, builders, host):
    variables = {"toolchain_runtime_of": built(builders), "toolchain_runtime_backends": ["cuda"]}
    calls = host.run(entry_point="runtime", status=2, toolchain_method=own, **variables)
    assert calls == []
    assert f"toolchain_method is {own} on this host and {builders} on its builder" in host.said
    assert f"Name a builder (llama_build_host) whose toolchain_method is {own}" in host.said
    assert f"or set toolchain_method: {builders} for this host" in host.said
    assert " changed=0 " in host.said


def test_a_host_of_its_builders_method_gets_the_libraries_and_no_compiler(host):
    calls = host.run(
        entry_point="runtime", toolchain_runtime_of=built("packages"), toolchain_runtime_backends=["cpu", "cuda"]
    )
    assert transactions(calls) == ["gnupg2", ["cuda-cudart-13-4", "libcublas-13-4"]]
