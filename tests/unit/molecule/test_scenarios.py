# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every scenario runs what it claims to run: a missing playbook or an empty inventory would pass in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
MOLECULE = ROOT / "molecule"
BASE = yaml.safe_load((ROOT / ".config/molecule/config.yml").read_text(encoding="utf-8"))
SCENARIOS = sorted(path.parent.name for path in MOLECULE.glob("*/molecule.yml"))
SEQUENCE = ["syntax", "prepare", "check", "converge", "idempotence", "verify"]
# Actions that run a playbook of another action, or none.
PLAYBOOK = {"syntax": "converge", "check": "converge", "idempotence": "converge"}


def load(path: Path) -> list[dict]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def sequence(scenario: str) -> list[str]:
    own = yaml.safe_load((MOLECULE / scenario / "molecule.yml").read_text(encoding="utf-8")) or {}
    return own.get("scenario", {}).get("test_sequence", BASE["scenario"]["test_sequence"])


def imported(play: dict) -> str:
    return play.get("ansible.builtin.import_playbook", "")


def test_there_are_scenarios():
    assert "default" in SCENARIOS


def test_base_config():
    assert BASE["prerun"] is False
    assert BASE["shared_state"] is True
    assert BASE["ansible"]["executor"]["args"]["ansible_playbook"] == [
        "--inventory=${MOLECULE_SCENARIO_DIRECTORY}/../inventory.yml"
    ]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sequence(scenario):
    actions = [action for action in sequence(scenario) if action not in ("create", "destroy", "side_effect", "cleanup")]
    assert actions == SEQUENCE
    assert (set(sequence(scenario)) >= {"create", "destroy"}) is (scenario == "default")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_action_has_its_playbook(scenario):
    wanted = {PLAYBOOK.get(action, action) for action in sequence(scenario)}
    assert {name for name in wanted if not (MOLECULE / scenario / f"{name}.yml").is_file()} == set()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    ("playbook", "first"),
    [("prepare", "../utils/reset.yml"), ("converge", "../utils/guard.yml"), ("verify", "../utils/guard.yml")],
)
def test_playbook_begins_with_its_guard(scenario, playbook, first):
    assert imported(load(MOLECULE / scenario / f"{playbook}.yml")[0]) == first


def test_reset_begins_with_the_guard():
    assert imported(load(MOLECULE / "utils/reset.yml")[0]) == "guard.yml"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_converge_and_verify_run_on_hosts_under_test(scenario):
    for playbook in ("converge", "verify"):
        plays = load(MOLECULE / scenario / f"{playbook}.yml")[1:]
        assert any(imported(play) or play["hosts"] not in ("localhost", "all") for play in plays)


@pytest.mark.parametrize("inventory", sorted(MOLECULE.glob("**/inventory.yml")), ids=lambda p: p.parent.name)
def test_inventory_names_hosts_under_test(inventory):
    group = load(inventory)["test_resources"]
    assert group["hosts"]
    assert group["vars"] == load(MOLECULE / "inventory.yml")["test_resources"]["vars"]


@pytest.mark.parametrize("marker", ["only-full", "alone"])
def test_what_is_run_otherwise_says_why(marker):
    marked = [scenario for scenario in SCENARIOS if (MOLECULE / scenario / marker).exists()]
    assert marked
    assert {name for name in marked if not (MOLECULE / name / marker).read_text(encoding="utf-8").strip()} == set()
    assert "default" not in marked


SHARED = "/srv/ccache"


def test_a_scenario_about_compiling_has_a_cache_of_its_own():
    """A build that is killed, fails or is counted must not be over before it begins."""
    own = {path.parts[len(MOLECULE.parts)] for path in MOLECULE.glob("*/**/*.yml") if SHARED in path.read_text("utf-8")}
    assert own == {"vulkan"}


def guard(inventory: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ANSIBLE_LOCAL_TEMP": str(tmp_path), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "guard.yml"]
    return subprocess.run(command, cwd=MOLECULE / "utils", env=env, capture_output=True, text=True, check=False)


def test_guard_refuses_an_inventory_without_hosts(tmp_path):
    empty = tmp_path / "inventory.yml"
    empty.write_text("all: {hosts: {elsewhere: {}}}\n", encoding="utf-8")
    done = guard(empty, tmp_path)
    assert done.returncode == 2
    assert "No host is in the group test_resources" in " ".join(done.stdout.split()) + " ".join(done.stderr.split())


def test_guard_passes_with_the_inventory(tmp_path):
    done = guard(MOLECULE / "inventory.yml", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
