# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.llamafleet.turboquant.plugins.modules import preflight_checks

CAPTURES = Path(__file__).parents[3] / "data" / "hardware"


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the module as a program on a captured Fedora host."""
    files = yaml.safe_load((CAPTURES / "rtx_4090.yml").read_text(encoding="utf-8"))["files"]
    files["/etc/os-release"] = "ID=fedora\nVERSION_ID=42\n"
    files["/run/systemd/system/x"] = ""
    files["/proc/sys/kernel/arch"] = "x86_64\n"
    for path, content in files.items():
        target = tmp_path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def call(**arguments):
        done = subprocess.run(
            [sys.executable, preflight_checks.__file__],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {"root": str(tmp_path), **arguments}}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before, "the module wrote something"
        return json.loads(done.stdout)

    return call


def test_a_warning_passes_and_the_hardware_is_a_fact(run):
    result = run(backends=["cuda"])
    assert "failed" not in result
    assert [finding["id"] for finding in result["findings"]] == ["release_ended"]
    assert "Fedora 42 is past its end" in str(result["warnings"])
    assert result["ansible_facts"]["llamafleet_hardware"]["gpus"][0]["name"] == "NVIDIA GeForce RTX 4090"
    assert result["changed"] is False


def test_the_platform_is_a_fact_by_the_names_of_setup(run):
    facts = run(backends=["cuda"])["ansible_facts"]
    del facts["llamafleet_hardware"]
    assert facts == {
        "architecture": "x86_64",
        "distribution": "Fedora",
        "distribution_version": "42",
        "distribution_major_version": "42",
    }


def test_strict_refuses_it(run):
    result = run(backends=["cuda"], strict=True)
    assert result["failed"]
    assert result["msg"].startswith("preflight refused: 1 warning")
    assert "ansible_facts" not in result


def test_all_findings_are_in_the_message(run, tmp_path):
    result = run(
        backends=["cuda"],
        cuda_version="13.4",
        tested_releases=[43],
        ended_releases=[41],
        plan={"CUDA0": 99 << 30, "CUDA7": 1},
        model_dir=str(tmp_path / "models"),
        model_files=[{"name": "big.gguf", "bytes": 1 << 60}],
    )
    assert result["failed"]
    assert result["msg"].startswith("preflight refused: 3 refusals, 1 warning")
    for words in ("on CUDA0, which has 24.0 GiB", "on CUDA7; devices there", "for the model big.gguf in", "Fedora 42"):
        assert words in result["msg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"plan": {"CUDA0": "much"}}, "where each device needs a number of bytes"),
        ({"tested_releases": []}, "at least one release must be named"),
        ({"backends": ["metal"]}, "value of backends must be one or more of: cpu, cuda, rocm, vulkan"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(run, arguments, words):
    result = run(**arguments)
    assert result["failed"]
    assert words in result["msg"]
