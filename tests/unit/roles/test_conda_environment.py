# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks that fill a conda environment, with a micromamba that makes files as the umask lets it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
TASKS = ROOT / "roles/toolchain/tasks/conda_environment.yml"
MICROMAMBA = """#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in --prefix) prefix=$2 ;; --file) lock=$2 ;; esac
    shift
done
test -f "$lock"
mkdir -p "$prefix/lib" "$prefix/conda-meta"
echo library > "$prefix/lib/libstdc++.so.6"
"""


def test_the_service_reads_the_libraries_whatever_the_umask_of_the_login(tmp_path):
    program, lock = tmp_path / "program", tmp_path / "lock"
    program.write_text(MICROMAMBA, encoding="utf-8")
    lock.write_text("@EXPLICIT\n", encoding="utf-8")
    root = tmp_path / "conda"
    root.mkdir(mode=0o755)
    known = {
        "toolchain_conda_root": str(root),
        "__toolchain_conda_prefix": str(root / "env-0"),
        "__toolchain_conda_lock_file": str(lock),
        "__toolchain_conda_plan": {"specs": ["libstdcxx"]},
        "__toolchain_micromamba": str(root / "micromamba"),
        "__toolchain_micromamba_from": {
            "url": program.as_uri(),
            "sha256": hashlib.sha256(program.read_bytes()).hexdigest(),
        },
    }
    plays = [
        {"hosts": "localhost", "gather_facts": False, "vars": known, "tasks": yaml.safe_load(TASKS.read_text("utf-8"))}
    ]
    (tmp_path / "play.json").write_text(json.dumps(plays), encoding="utf-8")
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "--extra-vars", json.dumps(local), str(tmp_path / "play.json")],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=tmp_path,
        preexec_fn=lambda: os.umask(0o077),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    library = root / "env-0/lib/libstdc++.so.6"
    assert library.stat().st_mode & 0o777 == 0o644
    for folder in (library.parent, library.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o755, folder
