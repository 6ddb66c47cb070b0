# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.llamafleet.turboquant.plugins.action import model_file as action


def test_sizes_of_controller_files_are_filled_in(tmp_path):
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
    assert [joined.read(offset, 3) for offset in range(8)] == [
        b"123", b"234", b"345", b"456", b"567", b"67", b"7", b""
    ]  # fmt: skip


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
