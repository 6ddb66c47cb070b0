# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role llama_install without a name for the release, as a person sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[4]
# Nothing is installed. Below /opt, because the role makes SELinux know any other root.
ROOT = Path("/opt/llamafleet-of-a-unit-test")
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  roles:
    - role: llamafleet.turboquant.llama_install
      vars: {llama_install_packages: [], llama_install_root: ROOT}
"""


@pytest.fixture
def run(tmp_path):
    def call(*words):
        playbook = tmp_path / "play.yml"
        playbook.write_text(PLAY.replace("ROOT", str(ROOT)), encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(playbook), *words],
            cwd=TREE,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"), "ANSIBLE_BECOME": "false"},
        )

    return call


def test_a_release_without_a_name_is_refused(run):
    done = run()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no fingerprint is given, so there is no release to install" in done.stdout
    assert "run the role llama_build on this host first" in done.stdout


def test_check_mode_predicts_a_release_that_the_toolchain_will_name(run):
    done = run("--check")
    assert done.returncode == 0, done.stdout + done.stderr

    assert " changed=1 " in done.stdout
    assert not ROOT.exists()
