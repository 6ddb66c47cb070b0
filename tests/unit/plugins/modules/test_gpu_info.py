# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.llamafleet.turboquant.plugins.modules import gpu_info

CAPTURES = Path(__file__).parents[3] / "data" / "hardware"


def run(**arguments):
    """Run the module as a program of its own, as on a host."""
    done = subprocess.run(
        [sys.executable, gpu_info.__file__],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": os.environ["PATH"]},
    )
    return json.loads(done.stdout)


def test_a_captured_machine(tmp_path):
    capture = yaml.safe_load((CAPTURES / "strix_halo_64.yml").read_text(encoding="utf-8"))
    for path, content in capture["files"].items():
        target = tmp_path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    result = run(root=str(tmp_path))
    assert {key: result[key] for key in capture["expected"]} == capture["expected"]
    assert result["changed"] is False


def test_a_root_that_is_not_there_is_told_by_problems(tmp_path):
    result = run(root=str(tmp_path / "absent"))
    assert result["gpus"] == []
    assert {problem["id"] for problem in result["problems"]} == {"missing"}


@pytest.mark.parametrize("timeout", [0, 31])
def test_a_timeout_out_of_bounds_is_refused(timeout):
    result = run(timeout=timeout)
    assert result["failed"]
    assert "between 0.1 and 30" in result["msg"]
