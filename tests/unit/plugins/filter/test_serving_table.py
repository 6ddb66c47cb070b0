# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.filter.serving_table import serving_table

MIB = 1 << 20


def instance(**more):
    return {
        "name": "chat",
        "address": "127.0.0.1:8080",
        "model": "m.gguf",
        "ctx_size": 4096,
        "cache_types": "q8_0/turbo4",
        "state": "started",
        "action": "unchanged",
        "gate": {
            "tokens_per_second": 51.42,
            "figures": {"total_predicted": 130 * MIB, "total_measured": 131 * MIB},
        },
        **more,
    }


def test_a_row_for_each_instance_with_what_was_predicted_and_measured():
    lines = serving_table({"h1": {"instances": [instance(), instance(name="b", gate={}, action="created")]}})
    assert lines[0].split()[:3] == ["host", "instance", "address"]
    assert "130.0 MiB  131.0 MiB  51.4      started" in lines[1]
    assert lines[2].endswith("-          -          -         started, created")
    assert len(lines) == 3


def test_what_is_wrong_stands_below_the_table():
    lines = serving_table({"h1": {"instances": [instance(problems=["no token decoded", "slow"])]}})
    assert lines[1].endswith("WRONG")
    assert lines[2:] == ["h1 chat: no token decoded", "h1 chat: slow"]


def test_a_host_without_a_result_is_shown():
    lines = serving_table({"h1": None, "h2": {"failed": True, "msg": "unreachable"}})
    assert [line.split()[-1] for line in lines[1:3]] == ["FAILED", "FAILED"]
    assert lines[3:] == ["h1 -: no result", "h2 -: unreachable"]


def test_a_failure_is_shown_by_its_first_line_and_a_host_that_was_left_alone_by_its_state():
    lines = serving_table({"h1": {"failed": True, "msg": "it exits\nlast line\n"}, "h2": {"state": "not touched"}})
    assert lines[1].endswith("FAILED")
    assert lines[2].endswith("not touched")
    assert lines[3:] == ["h1 -: it exits"]


def test_anything_but_results_by_host_is_refused():
    with pytest.raises(AnsibleFilterError, match="got list"):
        serving_table([])
