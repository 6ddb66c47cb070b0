# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be seen without a host: secrets, and what a killed run leaves. The rest is seen by the scenarios."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _model_file, _server_probe, _unit
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances

KEY = "a-key-of-the-test-0123456789"


@pytest.fixture
def worker(tmp_path, monkeypatch):
    for name in ("UNITS", "CREDENTIALS", "STATE", "LOCKS"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setattr(llama_instances, name, folder)
    monkeypatch.setattr(_server_probe, "WATCH_STATE", tmp_path)
    module = SimpleNamespace(
        params={"release": "/opt/r", "verify": False},
        check_mode=False,
        tmpdir=str(tmp_path / "sent" / "now"),
        run_command=lambda words, **_more: (0, "", ""),
        atomic_move=lambda source, target: llama_instances.Path(source).replace(target),
    )
    return llama_instances.Worker(module)


def place(name, **files):
    folder = llama_instances.CREDENTIALS / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file.replace("__", ".").replace("_", "-")).write_text(text, encoding="utf-8")


def left():
    return sorted(str(path.relative_to(llama_instances.CREDENTIALS)) for path in llama_instances.CREDENTIALS.rglob("*"))


def call(arguments):
    """Run the module as a program, as Ansible does."""
    return subprocess.run(
        [sys.executable, llama_instances.__file__],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("where", ["defaults", "instance"])
def test_keys_are_not_in_what_the_module_says(where):
    secret = {"api_keys": [KEY], "tls": {"certificate": "/root/c", "key_content": f"{KEY}-of-tls"}}
    instance = {"name": "chat", "model": "m.gguf", "ctx_size": 256}
    arguments = {"instances": [instance], "release": "/none", "defaults": {"threads": 3}}
    (arguments["defaults"] if where == "defaults" else instance).update(secret)
    done = call(arguments)
    said = json.loads(done.stdout)
    assert said["msg"].startswith("/none/bin/llama-server does not exist")
    # The newest core leaves the arguments out unless it is asked; where they are, all are there but the keys.
    assert "invocation" not in said or said["invocation"]["module_args"]["defaults"]["threads"] == 3
    assert KEY not in done.stdout + done.stderr


def test_a_setting_that_does_not_exist_is_refused_among_the_defaults():
    arguments = {"instances": [], "defaults": {"thread": 3}}
    assert "defaults.thread" in json.loads(call(arguments).stdout)["msg"]


def test_a_secret_is_written_beside_its_place(worker):
    place("chat")
    # The folder of the module's own temporary files does not exist here, so nothing can have been written in it.
    worker.write(llama_instances.CREDENTIALS / "chat" / "api-keys", KEY.encode())
    path = llama_instances.CREDENTIALS / "chat" / "api-keys"
    assert path.read_text(encoding="utf-8") == KEY
    assert path.stat().st_mode & 0o777 == 0o400
    assert left() == ["chat", "chat/api-keys"]


def test_the_service_reads_the_probe_whatever_the_umask_of_the_login(worker, monkeypatch, tmp_path):
    probe = tmp_path / "opt/libexec/llama_probe.py"
    monkeypatch.setattr(_unit, "PROBE", str(probe))
    worker.module.exit_json = lambda **_result: None
    llama_instances.Path(worker.module.tmpdir).mkdir(parents=True)
    monkeypatch.setattr(llama_instances, "Module", lambda **_arguments: worker.module)

    def bring(self):
        place("chat")
        self.put({llama_instances.CREDENTIALS / "chat" / "api-keys": KEY.encode()})
        return {"changed": self.install_probe()}

    monkeypatch.setattr(llama_instances.Worker, "bring", bring)
    before = os.umask(0o077)
    try:
        llama_instances.main()
    finally:
        os.umask(before)
    assert probe.stat().st_mode & 0o777 == 0o644
    for folder in (probe.parent, probe.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o755, folder
    # And what is secret stays so.
    assert (llama_instances.CREDENTIALS / "chat" / "api-keys").stat().st_mode & 0o777 == 0o400


def test_what_a_killed_run_left_of_secrets_goes(worker):
    place("chat", api_keys=KEY, tmp1__new=KEY)
    place("chat.trial", api_keys=KEY, tls__key=KEY, tls__crt="c", tmp2__new=KEY)
    place("gone", note="of an administrator", api_keys=KEY)
    worker.forget_leftovers({"chat"})
    assert left() == ["chat", "chat/api-keys", "gone", "gone/note"]


def test_the_unit_of_a_removed_instance_goes_last(worker, monkeypatch):
    place("chat", api_keys=KEY)
    unit = llama_instances.UNITS / _unit.unit_name("chat")
    timer = llama_instances.UNITS / _unit.watchdog_name("chat", "timer")
    for path in (unit, timer):
        path.write_text(_unit.MARK, encoding="utf-8")
    there = []
    unlink = llama_instances.Path.unlink

    def noted(path, *arguments, **more):
        there.append((path.name, sorted(left()), unit.exists()))
        unlink(path, *arguments, **more)

    monkeypatch.setattr(llama_instances.Path, "unlink", noted)
    worker.remove("chat")
    assert there[-1] == (unit.name, [], True)
    assert list(llama_instances.UNITS.iterdir()) == []


def test_two_runs_do_not_work_at_once(worker, monkeypatch):
    monkeypatch.setattr(llama_instances, "LOCK_TIMEOUT", 0)
    monkeypatch.setattr(llama_instances.Worker, "bring", lambda _self: {"changed": False})
    with (
        _model_file.locked(llama_instances.LOCKS, 0),
        pytest.raises(_model_file.ModelFileError, match=r"another run \(process \d+\) holds"),
    ):
        worker.work()
    assert worker.work() == {"changed": False}


@pytest.mark.parametrize("looking", ["check", "verify"])
def test_who_only_looks_waits_for_nobody(worker, monkeypatch, looking):
    monkeypatch.setattr(llama_instances, "LOCK_TIMEOUT", 0)
    monkeypatch.setattr(llama_instances.Worker, "bring", lambda _self: {"changed": False})
    worker.check = looking == "check"
    worker.params["verify"] = looking == "verify"
    with _model_file.locked(llama_instances.LOCKS, 0):
        assert worker.work() == {"changed": False}


def speed(**changes):
    instance = llama_instances.Instance({"name": "chat", "model": "m.gguf", "ctx_size": 256, **changes})
    instance.listed = {"m.gguf": {"sha256": "a" * 64}}
    return llama_instances.speed_key(instance)


@pytest.mark.parametrize(
    ("key", "release", "rate"),
    [
        (speed(), "/opt/new", 12.5),
        (speed(min_tps="9", api_keys=[KEY]), "/opt/new", 12.5),
        (speed(ctx_size=512), "/opt/new", None),
        (speed(), "/opt/old", None),
    ],
    ids=["another release", "what costs no time differs", "other settings", "the same release"],
)
def test_a_release_is_compared_with_another_of_the_same_settings(key, release, rate):
    state = {"speed_key": speed(), "release": "/opt/old", "gate": {"tokens_per_second": 12.5}}
    assert llama_instances.rate_before(state, key, release) == rate
    assert llama_instances.rate_before({}, key, release) is None


def test_the_journal_does_not_get_the_arguments(monkeypatch):
    said = []
    monkeypatch.setattr(llama_instances.AnsibleModule, "log", lambda _self, msg, **_more: said.append(msg))
    module = object.__new__(llama_instances.Module)
    module.log(f"Invoked with key={KEY}", log_args={"key": KEY})
    module.log("something else")
    assert said == ["Invoked; the arguments hold keys and are not shown", "something else"]
