# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role documents is what it does: specs and defaults agree in names and in values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROLES = Path(__file__).resolve().parents[3] / "roles"


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def typed(value):
    """1, true and 1.0 are equal to Python and different things to a role."""
    return type(value).__name__, value


@pytest.fixture(params=sorted(path.name for path in ROLES.iterdir()))
def role(request):
    return request.param


def test_defaults_are_those_of_the_specs(role):
    options = read(ROLES / role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    specified = {name: typed(option["default"]) for name, option in options.items() if "default" in option}
    defaults = {name: typed(value) for name, value in (read(ROLES / role / "defaults/main.yml") or {}).items()}
    assert defaults == specified


def test_names_say_whose_they_are(role):
    files = [ROLES / role / "defaults/main.yml", *(ROLES / role / "vars").glob("*.yml")]
    for path in files:
        for name in read(path) or {}:
            prefix = f"{role}_" if path.parent.name == "defaults" else f"__{role}_"
            assert name.startswith(prefix), f"{path}: {name}"


def test_every_entry_point_and_option_is_described(role):
    for entry_point, spec in read(ROLES / role / "meta/argument_specs.yml")["argument_specs"].items():
        assert spec["short_description"], entry_point
        assert spec["description"], entry_point
        for name, option in spec.get("options", {}).items():
            assert option.get("description"), f"{entry_point}: {name}"
