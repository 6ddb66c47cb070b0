# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Grafana asks of a dashboard that it loads; that its expressions are read, bin/test lint asks promtool."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

BOARD = json.loads((Path(__file__).parents[3] / "docs/monitoring/grafana-dashboard.json").read_text(encoding="utf-8"))
COLUMNS = 24
# The oldest that Grafana 9 to 12 take without changing panels on the way.
LEAST_SCHEMA = 36
PANELS = {"timeseries", "table", "stat", "row"}


def overlap(one, other):
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def problems(board):
    """Everything that Grafana would refuse, leave out or show wrongly."""
    found = []
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", board.get("uid") or "") or not board.get("title"):
        found.append("uid or title")
    if not isinstance(board.get("schemaVersion"), int) or board["schemaVersion"] < LEAST_SCHEMA:
        found.append("schemaVersion")
    if board.get("id") is not None:
        found.append("an id of another Grafana")
    variables = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    ids = [panel["id"] for panel in board["panels"]]
    if len(set(ids)) != len(ids):
        found.append("panel ids")
    sources = [("variable", one) for one in board["templating"]["list"] if one["type"] == "query"]
    for panel in board["panels"]:
        sources.append((f"panel {panel['id']}", panel))
        sources += [(f"panel {panel['id']}", target) for target in panel["targets"]]
        if panel["type"] not in PANELS or not panel["title"] or not panel["targets"]:
            found.append(f"panel {panel['id']}: type, title or targets")
        letters = [target["refId"] for target in panel["targets"]]
        if len(set(letters)) != len(letters):
            found.append(f"panel {panel['id']}: refId")
        place = panel["gridPos"]
        others = [other["gridPos"] for other in board["panels"] if other is not panel]
        if place["x"] + place["w"] > COLUMNS or any(overlap(place, other) for other in others):
            found.append(f"panel {panel['id']}: gridPos")
        for target in panel["targets"]:
            used = {name for name in re.findall(r"\$\{?(\w+)", target["expr"]) if not name.startswith("__")}
            if not used <= set(variables):
                found.append(f"panel {panel['id']}: ${min(used - set(variables))} is no variable")
    for where, one in sources:
        source = one.get("datasource") or {}
        name = re.fullmatch(r"\$\{(\w+)\}", str(source.get("uid")))
        if source.get("type") != "prometheus" or not name or variables.get(name[1]) != "datasource":
            found.append(f"{where}: datasource")
    return found


def test_the_dashboard_loads():
    assert problems(BOARD) == []
    assert len(BOARD["panels"]) >= 8


def change(path, value):
    board = copy.deepcopy(BOARD)
    *way, last = path
    place = board
    for step in way:
        place = place[step]
    place[last] = value
    return board


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["uid"], "", "uid or title"),
        (["schemaVersion"], "39", "schemaVersion"),
        (["schemaVersion"], 16, "schemaVersion"),
        (["id"], 7, "an id of another Grafana"),
        (["panels", 1, "id"], 1, "panel ids"),
        (["panels", 0, "type"], "graph", "panel 1: type, title or targets"),
        (["panels", 1, "targets", 1, "refId"], "A", "panel 2: refId"),
        (["panels", 1, "gridPos", "x"], 13, "panel 2: gridPos"),
        (["panels", 1, "gridPos", "x"], 0, "panel 2: gridPos"),
        (["panels", 0, "datasource", "uid"], "P1809F7CD0C75ACF3", "panel 1: datasource"),
        (["panels", 0, "targets", 0, "datasource"], None, "panel 1: datasource"),
        (["templating", "list", 1, "datasource", "uid"], "${source}", "variable: datasource"),
        (["panels", 0, "targets", 0, "expr"], 'up{name=~"$host"}', "panel 1: $host is no variable"),
    ],
)
def test_what_would_not_load_is_found(path, value, said):
    assert said in problems(change(path, value))
