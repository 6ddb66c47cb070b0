# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What builds take of a builder's room, with locks in place of builds."""

from __future__ import annotations

import fcntl
import json
import threading

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _build_room

A, B, C = (character * 32 for character in "abc")


@pytest.fixture
def build(tmp_path):
    """Leave the work folder of a build, which runs as long as the test does or has ended."""
    held = []

    def leave(name, busy=False, used_mib=0, **job):
        work = tmp_path / "work" / name
        (work / "build").mkdir(parents=True)
        if job:
            (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (work / "build" / "object.o").write_bytes(b"x" * (used_mib << 20))
        lock = (work / "lock").open("w", encoding="ascii")
        held.append(lock)
        if busy:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return work

    yield leave
    for lock in held:
        lock.close()


def test_what_running_builds_will_still_take_is_promised(tmp_path, build):
    build(A, busy=True, used_mib=3, need_mib=10)
    build(B, need_mib=100)
    build(C, busy=True, need_mib=1000)
    assert _build_room.promised_mib(tmp_path, A) == 1000
    assert _build_room.promised_mib(tmp_path, B) == 1007
    assert _build_room.promised_mib(tmp_path, "d" * 32) == 1007
    # One that takes more than was foreseen gives nothing back to the others.
    assert _build_room.still_needed(2, tmp_path / "work" / A) == 0
    assert _build_room.still_needed(2, tmp_path / "nowhere") == 2


def test_a_build_that_was_killed_while_it_was_started(tmp_path, build):
    build(A, busy=True)
    (tmp_path / "work" / A / "job.json").write_text("{", encoding="utf-8")
    (tmp_path / "work" / "of-somebody").mkdir()
    assert _build_room.promised_mib(tmp_path, B) == 0
    assert [left.work.name for left in _build_room.read_builds(tmp_path)] == [A]


def test_one_at_a_time_looks_and_starts(tmp_path):
    order = []

    def second():
        with _build_room.alone(tmp_path):
            order.append("second")

    with _build_room.alone(tmp_path):
        waits = threading.Thread(target=second)
        waits.start()
        waits.join(0.3)
        order.append("first")
    waits.join(10)
    assert order == ["first", "second"]
