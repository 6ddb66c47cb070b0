# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The connection of the scenarios: it looks where tests/host/host writes, and a host that is gone is unreachable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader

HOST = Path(__file__).resolve().parents[2] / "host"
connection_loader.add_directory(str(HOST / "connection"))


def entered(pids: Path, monkeypatch):
    connection = connection_loader.get("entered", PlayContext())
    connection.set_options(var_options={"inventory_hostname": "web", "ansible_host": "test-web"})
    module = sys.modules[type(connection).__module__]
    monkeypatch.setattr(module, "PIDS", pids)
    return connection


def test_it_looks_where_the_hosts_are_written():
    shown = subprocess.run(
        [sys.executable, "-c", "import machine; print(machine.PIDS)"], cwd=HOST, capture_output=True, text=True
    )
    assert f'PIDS = Path("{shown.stdout.strip()}")' in (HOST / "connection/entered.py").read_text(encoding="utf-8")


def test_a_host_that_was_never_booted(tmp_path, monkeypatch):
    with pytest.raises(AnsibleConnectionFailure, match="test-web is no host of tests/host/host that runs"):
        entered(tmp_path, monkeypatch).exec_command("true")


def test_a_host_that_is_gone(tmp_path, monkeypatch):
    with subprocess.Popen(["true"]) as ended:
        pass
    (tmp_path / "test-web").write_text(str(ended.pid), encoding="ascii")
    with pytest.raises(AnsibleConnectionFailure, match="test-web: nsenter: "):
        entered(tmp_path, monkeypatch).exec_command("true")


def test_a_number_that_is_this_machines_own_by_now(tmp_path, monkeypatch):
    (tmp_path / "test-web").write_text(str(os.getpid()), encoding="ascii")
    with pytest.raises(AnsibleConnectionFailure, match=r"test-web: (entered: this is|nsenter: )"):
        entered(tmp_path, monkeypatch).exec_command(f"touch {tmp_path}/done-here")
    assert not (tmp_path / "done-here").exists()
