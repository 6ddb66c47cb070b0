# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible_collections.llamafleet.turboquant.plugins.action import model_file as action


def test_sizes_of_controller_files_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.setattr(action.C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"4567")
    args = {
        "files": [
            {"name": "one", "path": str(tmp_path / "a")},
            {"name": "two", "parts": [{"path": str(tmp_path / "a")}, {"path": str(tmp_path / "b")}]},
            {"name": "net", "url": "https://h/x"},
        ]
    }
    paths = action.controller_files(args)
    assert set(paths) == {"one", "two"}
    assert args["files"][0]["bytes"] == 3
    assert [part["bytes"] for part in args["files"][1]["parts"]] == [3, 4]
    joined = action.Joined(paths["two"])
    assert joined.size == 7
    assert joined.sha256() == hashlib.sha256(b"1234567").hexdigest()
    wanted = [b"123", b"234", b"345", b"456", b"567", b"67", b"7", b""]
    for offset, content in enumerate(wanted):
        with joined.as_file(offset, 3) as (path, size):
            assert (Path(path).read_bytes(), size) == (content, len(content))


def test_what_is_sent_whole_is_sent_from_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(action.C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    (tmp_path / "a").write_bytes(b"1234567")
    for paths, offset, count, there, content in (
        (["a"], 0, 7, True, b"1234567"),
        (["a"], 0, 6, False, b"123456"),
        (["a"], 4, 9, False, b"567"),
        (["a", "a"], 0, 99, False, b"12345671234567"),
    ):
        with action.Joined([str(tmp_path / path) for path in paths]).as_file(offset, count) as (path, size):
            assert (Path(path) == tmp_path / "a") is there
            assert Path(path).read_bytes() == content
            assert size == len(content)
    # sftp would give the chunk on the host that mode, and the next one could not take its place.
    (tmp_path / "a").chmod(0o444)
    with action.Joined([str(tmp_path / "a")]).as_file(0, 7) as (path, size):
        assert Path(path) != tmp_path / "a"
        assert (Path(path).read_bytes(), size) == (b"1234567", 7)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class Sender(action.ActionModule):
    """The action with a host that has room for so much at once."""

    def __init__(self, room):
        self.room = room
        self.host = "h"
        self.args = {"chunk_mib": 1}
        self.sent = []
        shell = types.SimpleNamespace(tmpdir="/tmp/far", join_path=lambda *parts: "/".join(parts))
        self._connection = types.SimpleNamespace(_shell=shell)

    def _transfer_file(self, local_path, remote_path):
        size = Path(local_path).stat().st_size
        self.sent.append(size >> 20)
        if size > self.room:
            raise AnsibleError(f"failed to transfer file to {remote_path}")

    def _fixup_perms2(self, remote_paths, remote_user=None, execute=True):
        pass

    def _step(self, extra, task_vars, asynchronous=False):
        return {"size": extra["chunk"]["offset"] + extra["chunk"]["bytes"]}


@pytest.mark.parametrize(
    ("room", "free", "sent"),
    [
        (1 << 30, 1 << 40, [1, 2, 4, 8, 5]),
        # The room for the third is missing, so the small ones go on, and none is tried that is larger.
        (3 << 20, 1 << 40, [1, 2, 4] + [1] * 17),
        # Each of 50 forks may come to keep a chunk of 4 MiB here.
        (1 << 30, 200 << 20, [1, 2] + [2] * 8 + [1]),
    ],
)
def test_chunks_grow_as_far_as_there_is_room(tmp_path, monkeypatch, room, free, sent):
    monkeypatch.setattr(action.C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(action.C, "DEFAULT_FORKS", 50)
    monkeypatch.setattr(action.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
    with (tmp_path / "a").open("wb") as handle:
        handle.truncate(20 << 20)
    sender = Sender(room)
    assert sender._send("a", action.Joined([str(tmp_path / "a")]), 0, True, {}) == {"size": 20 << 20}
    assert sender.sent == sent


def test_a_chunk_for_which_there_is_never_room_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(action.C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    sender = Sender(1 << 19)
    with pytest.raises(AnsibleError, match="failed to transfer"):
        sender._send("a", action.Joined([str(tmp_path / "a")]), 0, True, {})
    assert sender.sent == [1]


def test_a_file_that_the_controller_lacks_or_that_is_cut_short_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    with pytest.raises(AnsibleActionFail, match=r"/none is not a file on the controller"):
        action.controller_files({"files": [{"name": "x", "path": str(tmp_path / "none")}]})
    with pytest.raises(AnsibleActionFail, match="has 3 bytes, but bytes says 4"):
        action.controller_files({"files": [{"name": "x", "path": str(tmp_path / "a"), "bytes": 4}]})


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (
            {"phase": "fetch", "name": "m", "done": 1 << 30, "total": 4 << 30, "rate": 1 << 28},
            "h: fetching m: 1.00 GiB of 4.00 GiB (25 %), 256.0 MiB/s, 12 s left",
        ),
        ({"phase": "fetch", "name": "m", "done": 1 << 20, "total": None, "rate": 0}, "h: fetching m: 1.0 MiB"),
        (
            {"phase": "verify", "name": "m", "done": 0, "total": 1 << 20, "rate": 0},
            "h: reading m: 0.0 MiB of 1.0 MiB (0 %)",
        ),
    ],
)
def test_progress_in_words(state, line):
    assert action.progress_line("h", json.dumps(state)) == line


@pytest.mark.parametrize("text", ["", "{", '{"phase": "nap"}', "[]"])
def test_no_progress_is_nothing_to_say(text):
    assert action.progress_line("h", text) is None


TREE = Path(__file__).resolve().parents[4]
# More than two chunks of the smallest size.
CONTENT = bytes(range(251)) * 10000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Send
      llamafleet.turboquant.model_file:
        directory: "{{ folder }}/models"
        files: [{name: m.gguf, path: "{{ folder }}/sent", sha256: "{{ digest }}"}]
        reserve_mib: 0
        chunk_mib: 1
      register: result
    - ansible.builtin.copy:
        content: "{{ result | to_json }}"
        dest: "{{ folder }}/result.json"
        mode: "0600"
"""


@pytest.fixture
def send(tmp_path):
    """Run the action with its module on this machine, as a play does."""
    (tmp_path / "sent").write_bytes(CONTENT)
    (tmp_path / "play.yml").write_text(PLAY, encoding="utf-8")
    (tmp_path / "models").mkdir()

    def call(digest=DIGEST):
        variables = json.dumps({"folder": str(tmp_path), "digest": digest})
        argv = ["-i", "localhost,", "-e", variables, "-e", f"ansible_python_interpreter={sys.executable}"]
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", *argv, str(tmp_path / "play.yml")],
            cwd=TREE,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"), "HOME": str(tmp_path)},
        )
        if done.returncode:
            # The screen's lines are folded.
            return " ".join(done.stdout.split())
        return json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))

    return call


@pytest.mark.parametrize("already", [0, 1000, 1 << 20, len(CONTENT)])
def test_chunks_arrive_and_what_an_earlier_run_has_brought_is_not_sent_again(send, tmp_path, already):
    if already:
        (tmp_path / "models" / f"m.gguf.{DIGEST[:16]}.partial").write_bytes(CONTENT[:already])
    first = send()
    assert first["changed"] is True
    assert [(entry["action"], entry["bytes"]) for entry in first["files"]] == [("placed", len(CONTENT))]
    assert not set(first) & {"due", "size", "needs_copy", "refused"}
    assert (tmp_path / "models" / "m.gguf").read_bytes() == CONTENT
    again = send()
    assert (again["changed"], again["files"][0]["action"]) == (False, "kept")


@pytest.mark.parametrize("arrived", [1 << 20, len(CONTENT)])
def test_bytes_that_were_damaged_on_their_way_are_not_placed(send, tmp_path, arrived):
    (tmp_path / "models" / f"m.gguf.{DIGEST[:16]}.partial").write_bytes(b"?" + CONTENT[1:arrived])
    (tmp_path / "models" / "m.gguf").write_bytes(b"the file before")
    text = send()
    assert "the file on the controller is right, so it was damaged on its way: run again" in text
    assert (tmp_path / "models" / "m.gguf").read_bytes() == b"the file before"
    # Nothing of it is kept, so the next run brings all of it.
    assert send()["files"][0]["action"] == "replaced"
    assert (tmp_path / "models" / "m.gguf").read_bytes() == CONTENT


def test_a_wrong_file_on_the_controller_is_not_placed(send, tmp_path):
    text = send("0" * 64)
    assert f"is {DIGEST} ({len(CONTENT)} bytes), but the inventory says {'0' * 64}" in text
    assert "the file on the controller is that one: correct it, or the digest" in text
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".lock"]
