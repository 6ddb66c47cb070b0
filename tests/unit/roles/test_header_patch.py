# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The patch of CUDA's headers: six prototypes, once, and back to the byte. The scenario toolchain sees it on a host."""

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
TASKS = ROOT / "roles/toolchain/tasks"
FUNCTIONS = ["sinpi", "sinpif", "cospi", "cospif", "rsqrt", "rsqrtf"]

# In the shape of CUDA 12.9's: what looks like the prototypes and is none, too.
EXTERN = "extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ "
OTHERS = f"""\
 * - rsqrt(\\p x) returns NaN if \\p x is less than 0.
{EXTERN}double                 rcbrt(double x);
{EXTERN}void                   sincospi(double x, double *sptr, double *cptr);
__MATH_FUNCTIONS_DECL__ float rsqrt(const float a);
__func__(double rsqrt(double a));
__func__(float sinpif(float a));
"""
HEADER = OTHERS + "".join(
    f"{EXTERN}{'float ' if name.endswith('f') else 'double'}                 {name}({kind} x);\n"
    for name, kind in ((name, "float" if name.endswith("f") else "double") for name in FUNCTIONS)
)


def play(folder: Path, *options: str) -> int:
    """Patch the headers in a folder, and return how many were changed."""
    plan = {"header_patch": {"functions": FUNCTIONS, "files": [str(folder / "crt/math_functions.h")]}}
    tasks = yaml.safe_load((TASKS / "header_patch.yml").read_text())
    plays = [{"hosts": "localhost", "gather_facts": False, "vars": {"__toolchain_plan": plan}, "tasks": tasks}]
    (folder / "play.json").write_text(json.dumps(plays), encoding="utf-8")
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
    command = [sys.executable, "-m", "ansible", "playbook", "--extra-vars", json.dumps(local), *options]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [*command, str(folder / "play.json")], capture_output=True, text=True, check=False, env=env, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (changed,) = re.findall(r"changed=(\d+)", done.stdout)
    return int(changed)


@pytest.fixture
def header(tmp_path):
    path = tmp_path / "crt/math_functions.h"
    path.parent.mkdir()
    path.write_text(HEADER, encoding="utf-8")
    return path


def test_six_prototypes_are_patched_once(header, tmp_path):
    assert play(tmp_path, "--check") == 1
    assert header.read_text() == HEADER
    assert play(tmp_path) == 1
    patched = header.read_text()
    assert patched.startswith(OTHERS)
    for name in FUNCTIONS:
        assert re.search(rf"{name}\((double|float) x\) noexcept \(true\) /\* llamafleet \*/;$", patched, re.MULTILINE)
    assert patched.count("llamafleet") == len(FUNCTIONS)
    assert play(tmp_path) == 0


def test_what_takes_it_back_leaves_every_byte(header, tmp_path):
    play(tmp_path)
    (undo,) = [
        task["ansible.builtin.replace"]
        for task in yaml.safe_load((TASKS / "undo_header_patch.yml").read_text())
        if "ansible.builtin.replace" in task
    ]
    assert re.sub(undo["regexp"], undo.get("replace", ""), header.read_text(), flags=re.MULTILINE) == HEADER
