# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever goes wrong in the middle of a change, the host is as it was; on folders and a systemd of the test."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _unit
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances

OLD, NEW = "ExecStart=old\n", "ExecStart=new\n"


class Systemd:
    """Which units run, with what text they were started, and what is enabled."""

    def __init__(self):
        self.running, self.enabled, self.words, self.failing = {}, set(), [], {}

    def __call__(self, words, **_more):
        self.words.append(words)
        if words[0] != "systemctl":
            return 0, "", ""
        verb, unit = words[1], words[-1]
        if (verb, unit) in self.failing:
            error = self.failing.pop((verb, unit))
            if isinstance(error, BaseException):
                raise error
            return 1, "", error
        if verb == "show":
            active = "active" if unit in self.running else "inactive"
            return 0, f"ActiveState={active}\nUnitFileState={'enabled' if unit in self.enabled else 'disabled'}\n", ""
        if verb == "stop" or words[1:3] == ["disable", "--now"]:
            self.running.pop(unit, None)
        if verb == "disable":
            self.enabled.discard(unit)
        if verb == "enable":
            self.enabled.add(unit)
        if verb == "restart" or (verb == "start" and unit not in self.running):
            self.running[unit] = (llama_instances.UNITS / unit).read_text(encoding="utf-8")
        return 0, "", ""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host where chat, code and gone run in their old form with their watchdogs."""
    for name in ("UNITS", "CREDENTIALS", "STATE"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setattr(llama_instances, name, folder)
    systemd = Systemd()
    warned = []
    module = SimpleNamespace(
        params={"release": "/opt/r", "trial": "never", "gate": False},
        check_mode=False,
        tmpdir=str(tmp_path),
        run_command=systemd,
        warn=warned.append,
        atomic_move=lambda source, target: Path(source).replace(target),
    )
    made = SimpleNamespace(systemd=systemd, module=module, warned=warned, worker=llama_instances.Worker(module))
    for name in ("chat", "code", "gone"):
        for unit in (_unit.unit_name(name), _unit.watchdog_name(name, "timer")):
            (llama_instances.UNITS / unit).write_text(OLD, encoding="utf-8")
            systemd.enabled.add(unit)
            systemd(["systemctl", "start", unit])
    keys = llama_instances.CREDENTIALS / "chat" / "api-keys"
    keys.parent.mkdir()
    keys.write_text("old-key\n", encoding="utf-8")
    keys.chmod(0o400)
    state = llama_instances.STATE / "chat"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"fingerprint": "old"}), encoding="utf-8")
    (state / "good.service").write_text(OLD, encoding="utf-8")
    for folder in (llama_instances.UNITS, state):
        for path in folder.iterdir():
            path.chmod(0o644)
    made.before = made_of(made)
    systemd.words.clear()
    return made


def made_of(host):
    files = {
        path.name if path.parent.name != "chat" else f"chat/{path.name}": (path.read_bytes(), path.stat().st_mode)
        for folder in (llama_instances.UNITS, llama_instances.CREDENTIALS, llama_instances.STATE)
        for path in folder.rglob("*")
        if path.is_file()
    }
    return files, dict(host.systemd.running), set(host.systemd.enabled)


def wanted(name, reasons=("settings",), **more):
    instance = llama_instances.Instance(
        {"name": name, "model": "m.gguf", "port": {"chat": 1, "code": 2}.get(name, 3), "host": "127.0.0.1",
         "state": "started", "api_keys": [], "ctx_size": 256, "cache_type_k": "f16", "cache_type_v": "f16",
         "flash_attn": "auto", "memory_max": "", **more}
    )  # fmt: skip
    timer = llama_instances.UNITS / _unit.watchdog_name(name, "timer")
    instance.files = {llama_instances.UNITS / instance.unit: NEW.encode(), timer: NEW.encode()}
    if name == "chat":
        instance.files[instance.credentials / "api-keys"] = b"new-key\n"
    instance.reasons = list(reasons)
    instance.action = "updated"
    return instance


def fail_at(host, monkeypatch, number, error):
    """Let the write of this number, counted from 1, and no other fail."""
    count = [0]
    move = host.module.atomic_move

    def failing(source, target):
        count[0] += 1
        if count[0] == number:
            raise error
        move(source, target)

    host.module.atomic_move = failing
    return count


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", range(1, 6))
def test_a_full_disk_leaves_all_as_it_was(host, monkeypatch, number):
    fail_at(host, monkeypatch, number, FULL)
    with pytest.raises(llama_instances.Failure, match=r"cannot be written: No space left on device"):
        host.worker.apply([wanted("chat"), wanted("code")], ["gone"])
    assert made_of(host) == host.before
    assert not list(Path(host.module.tmpdir).rglob("*.new"))


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_a_helper_that_ends_the_process_leaves_all_as_it_was(host, monkeypatch, number, error):
    fail_at(host, monkeypatch, number, error)
    with pytest.raises(type(error)):
        host.worker.apply([wanted("chat"), wanted("code")], ["gone"])
    assert made_of(host) == host.before
    assert "llama-server@chat.service runs again with its previous settings" in host.warned[0]


@pytest.mark.parametrize(
    ("verb", "unit"),
    [
        ("stop", "llama-server@gone.service"),
        ("daemon-reload", "daemon-reload"),
        ("enable", "llama-server@code.service"),
        ("restart", "llama-server@code.service"),
        ("enable", "llama-watchdog@code.timer"),
        ("restart", "llama-watchdog@side.timer"),
    ],
)
def test_a_systemctl_that_fails_in_between_leaves_all_as_it_was(host, verb, unit):
    side = wanted("side", reasons=())
    for path in side.files:
        path.write_bytes(OLD.encode())
        path.chmod(0o644)
        host.systemd(["systemctl", "start", path.name])
        host.systemd.enabled.add(path.name)
    host.before = made_of(host)
    host.systemd.failing[verb, unit] = "Transport endpoint is not connected"
    with pytest.raises(llama_instances.Failure, match="Transport endpoint is not connected"):
        host.worker.apply([wanted("chat"), wanted("code"), side], ["gone"])
    assert made_of(host) == host.before


def test_a_record_that_cannot_be_written_takes_back_what_it_would_have_recorded(host, monkeypatch):
    write = llama_instances._model_file.write_atomically

    def failing(path, text):
        if path.parent.name == "code":
            raise FULL
        write(path, text)

    monkeypatch.setattr(llama_instances._model_file, "write_atomically", failing)
    with pytest.raises(llama_instances.Failure, match="No space left on device"):
        host.worker.apply([wanted("chat"), wanted("code")], ["gone"])
    assert made_of(host) == host.before


def test_an_error_of_the_module_itself_is_told_with_the_way_back(host, monkeypatch):
    monkeypatch.setattr(host.worker, "start_and_gate", lambda instance: {}["missing"])
    with pytest.raises(llama_instances.Unexpected, match=r"(?s)KeyError: 'missing'.*runs again with its previous"):
        host.worker.apply([wanted("chat"), wanted("code")], [])
    assert made_of(host) == host.before


def test_the_way_back_goes_on_over_what_fails_on_it(host, monkeypatch):
    """A disk that stays full: of the first instance what is wrong is told, and the others serve again."""
    switched = []

    def gate(instance):
        host.systemd(["systemctl", "restart", instance.unit])
        switched.append(instance.name)
        if len(switched) == 2:
            host.module.atomic_move = lambda source, target: (_ for _ in ()).throw(FULL)
            raise llama_instances.Failure("did not pass")

    monkeypatch.setattr(host.worker, "start_and_gate", gate)
    with pytest.raises(llama_instances.Failure) as caught:
        host.worker.apply([wanted("chat"), wanted("code")], ["gone"])
    said = str(caught.value)
    assert said.startswith("did not pass\nThe way back: llama-server@code.service runs again")
    assert "llama-server@chat.service cannot be written: No space left on device" in said
    assert set(host.systemd.running) == set(host.before[1])


def test_what_was_stopped_before_is_stopped_and_not_enabled_after(host, monkeypatch):
    host.systemd(["systemctl", "disable", "--now", "llama-server@code.service"])
    host.before = made_of(host)
    host.systemd.failing["restart", "llama-server@code.service"] = "Job failed"
    with pytest.raises(llama_instances.Failure, match=r"llama-server@code\.service is stopped, as it was"):
        host.worker.apply([wanted("code")], [])
    assert "llama-server@code.service" not in host.systemd.running
    assert "llama-server@code.service" not in host.systemd.enabled


def test_all_goes_through_when_nothing_fails(host):
    host.worker.apply([wanted("chat"), wanted("code")], ["gone"])
    assert host.systemd.running["llama-server@chat.service"] == NEW
    assert "llama-server@gone.service" not in host.systemd.running
    assert json.loads((llama_instances.STATE / "code" / "state.json").read_text())["release"] == "/opt/r"


def test_a_helper_of_ansible_does_not_end_the_module_while_it_works(tmp_path):
    """atomic_move ends in fail_json or in an Exception, by the version of Ansible."""
    (tmp_path / "taken").mkdir()
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances
def work(self):
    try:
        self.write(llama_instances.Path("{tmp_path}/taken"), b"text")
    except llama_instances.Failure as exc:
        try:
            self.module.fail_json(msg="of a helper")
        except llama_instances.Failure as other:
            raise llama_instances.Failure(f"{{exc}}; {{other}}; and all was put back")
llama_instances.Worker.work = work
llama_instances.main()
"""
    given = json.dumps({"ANSIBLE_MODULE_ARGS": {"instances": []}})
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert said["failed"] is True
    assert f"{tmp_path}/taken" in said["msg"]
    assert said["msg"].endswith("; of a helper; and all was put back")
