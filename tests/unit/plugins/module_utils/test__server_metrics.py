# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_metrics, _server_probe

ROOT = Path(__file__).parents[4]
EXAMPLES = ROOT / "docs" / "monitoring"
ROW = {
    "release": "/opt/llamafleet/releases/x",
    "model": 'a "b".gguf',
    "address": "127.0.0.1:8080",
    "state": {
        "gated_at": 1764000000,
        "gate": {
            "tokens_per_second": 12.345678,
            "predicted": {"devices": {"host": 5, "CUDA0": 7}},
            "figures": {"total_predicted": 10, "total_measured": 11, "kv_predicted": 1, "kv_measured": 2},
        },
    },
}
WATCHED = {"restarts": 2, "failures": 0, "last_ok": 1764000000.123}
# /metrics of llama-server as captured; the scenario llama_server sees that a real one prints the same names.
SERVER = (Path(__file__).parents[3] / "data" / "llama-server" / "metrics-b11434.txt").read_text(encoding="utf-8")


def names(text):
    return set(re.findall(r"^([a-z_:]+)[{ ]", text, re.MULTILINE))


def expressions():
    rules = yaml.safe_load((EXAMPLES / "llamafleet.rules.yml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"]
            yield rule["expr"]
    board = json.loads((EXAMPLES / "grafana-dashboard.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in board["templating"]["list"]:
        yield variable.get("definition", "")


def test_the_text_is_exposition_format():
    text = _server_metrics.textfile({"chat": ROW, "new": {**ROW, "state": {}}})
    assert text.endswith("\n")
    assert 'llamafleet_memory_predicted_bytes{name="chat",device="CUDA0"} 7\n' in text
    assert 'model="a \\"b\\".gguf"' in text
    assert 'llamafleet_gate_tokens_per_second{name="chat"} 12.3457\n' in text
    assert text.count('name="new"') == 1
    # A family stands in one piece, below its type.
    for family in names(text):
        lines = text.splitlines()
        places = [index for index, line in enumerate(lines) if line.startswith(f"{family}{{")]
        assert lines[places[0] - 1] == f"# TYPE {family} gauge"
        assert places == list(range(places[0], places[0] + len(places)))


def test_nothing_is_said_of_nothing():
    assert _server_metrics.textfile({}) == ""


@pytest.mark.parametrize("expression", sorted(set(expressions()) - {""}))
def test_rules_and_dashboard_ask_for_what_is_printed(expression):
    known = names(SERVER) | names(_server_metrics.textfile({"chat": ROW}))
    known |= names(_server_probe.textfile("chat", WATCHED))
    asked = set(re.findall(r"\b(?:llamacpp:|llamafleet_)[a-z_]+", expression))
    assert asked or expression == 'up{job="llama-server"} == 0'
    assert asked <= known


def test_figures_of_the_watchdog():
    text = _server_probe.textfile("chat", WATCHED)
    assert 'llamafleet_watchdog_restarts_total{name="chat"} 2\n' in text
    assert 'llamafleet_watchdog_last_ok_timestamp_seconds{name="chat"} 1764000000.123\n' in text
    assert "last_ok" not in _server_probe.textfile("chat", {"restarts": 0, "failures": 3, "last_ok": None})
