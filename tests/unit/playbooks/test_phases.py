# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each phase of site.yml has a tag, which brings what the phase cannot do without and nothing of the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KIND = "Find out which hosts share a build"
COMPILERS = "Bring the builders their compilers"
BUILD = "Build once for each kind"
INSTALL = "Bring every host its release"
MODELS = "Fetch and prove the models"
SWITCH = ["Switch batch by batch", "Say which hosts failed"]
VERIFY = "Verify what runs"
JUDGE = "Judge every host and plan its memory before anything changes"
ALL = [
    JUDGE,
    "Open the devices",
    "Give integrated GPUs their memory",
    KIND,
    COMPILERS,
    BUILD,
    INSTALL,
    MODELS,
    *SWITCH,
    VERIFY,
]


def plays(playbook: str, *words: str) -> list[str]:
    """Return the names of the plays that have something to do, as ansible-playbook itself lists them."""
    argv = [sys.executable, "-m", "ansible", "playbook", "--list-tasks", "-i", "inventories/demo", playbook, *words]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    env["ANSIBLE_COLLECTIONS_PATH"] = str(ROOT.parents[2])
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = []
    for play in re.split(r"^  play #\d+ ", done.stdout, flags=re.MULTILINE)[1:]:
        head, *lines = play.splitlines()
        # A role that is imported has its arguments validated whatever the tags are.
        tasks = [line for line in lines if line.startswith("      ") and "Validating arguments" not in line]
        if tasks:
            found.append(head.partition(": ")[2].partition("\t")[0])
    return found


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("preflight", [JUDGE]),
        ("toolchain", [KIND, COMPILERS]),
        ("build", [KIND, COMPILERS, BUILD]),
        ("install", [KIND, COMPILERS, BUILD, INSTALL]),
        ("models", [MODELS]),
        ("deploy", [KIND, COMPILERS, BUILD, INSTALL, MODELS, *SWITCH, VERIFY]),
        ("verify", [VERIFY]),
    ],
)
def test_a_phase_by_its_tag(tag, expected):
    assert plays("site.yml", "--tags", tag) == expected


def test_the_site_is_all_phases_in_their_order():
    assert plays("site.yml") == ALL


def test_deploy_by_itself_goes_the_same_way():
    assert plays("playbooks/deploy.yml") == ALL[3:]
