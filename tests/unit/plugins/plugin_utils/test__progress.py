# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time

import pytest
from ansible_collections.llamafleet.turboquant.plugins.plugin_utils import _progress


def make(times):
    shown = []
    clock = iter(times)
    return _progress.Progress(shown.append, "builder", lambda: next(clock)), shown


def test_a_line_for_each_phase_and_one_every_few_seconds():
    progress, shown = make([0, 0, 1, 2, 13, 14, 14.5, 30])
    for phase, text in [("configure", ""), ("configure", ""), ("compile", "[1/300]"), ("compile", "[9/300]")]:
        progress.say(phase, text)
    assert shown == ["builder: configure 0 s", "builder: compile [1/300] 2 s"]
    for number in (10, 11, 120):
        progress.say("compile", f"[{number}/300]")
    assert shown[2:] == ["builder: compile [10/300] 14 s", "builder: compile [120/300] 30 s"]


def test_the_elapsed_time_may_be_the_hosts():
    progress, shown = make([0, 5])
    assert progress.say("compile", "[120/300]", 95.4)
    assert shown == ["builder: compile [120/300] 95 s"]


def test_something_is_seen_while_nothing_is_said():
    shown = []
    # A clock on which every look is a minute after the last.
    ticks = iter(range(0, 6000, 60))
    progress = _progress.Progress(shown.append, "host", lambda: next(ticks))
    with _progress.Ticking(progress, "send artifact", "412 MB", every=0.02):
        time.sleep(0.2)
    assert len(shown) >= 3
    assert shown[0] == "host: send artifact 412 MB 60 s"
    count = len(shown)
    time.sleep(0.1)
    assert len(shown) == count


@pytest.mark.parametrize(("size", "text"), [(412_000_000, "412 MB"), (1_000_000, "1 MB"), (5120, "5 kB")])
def test_megabytes(size, text):
    assert _progress.megabytes(size) == text
