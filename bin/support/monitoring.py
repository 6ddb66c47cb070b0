# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of docs/monitoring as Prometheus itself reads them: promtool, out of the distribution's package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from . import console, machine

if TYPE_CHECKING:
    from .stages import Tally

# What Grafana puts in the place of its variables.
_VARIABLES = {"$name": "chat|code", "$__rate_interval": "1m"}


def promtool() -> Path:
    """Return promtool: the machine's own, or the one of Debian's package, kept in the cache.

    Only the program is taken out of the package (19 MB); nothing is installed and no service starts.
    """
    own = shutil.which("promtool")
    if own:
        return Path(own)
    kept = machine.cache_dir() / "parts" / "promtool"
    if kept.exists():
        return kept
    if shutil.which("apt-get") is None:
        raise SystemExit("promtool is not here: dnf install /usr/bin/promtool")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=kept.parent) as folder,
        console.phase("fetch promtool from the package prometheus"),
    ):
        log = machine.cache_dir() / "packages.log"
        # apt checks the package against the archive's signature.
        if console.run(["apt-get", "download", "prometheus"], cwd=Path(folder), log=log, check=False):
            console.run(["apt-get", "update"], log=log)
            console.run(["apt-get", "download", "prometheus"], cwd=Path(folder), log=log)
        (package,) = Path(folder).glob("*.deb")
        content = Path(folder) / "content.tar"
        console.run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$0" > "$1"', package, content])
        console.run(["tar", "--extract", "--file", content, "--directory", folder, "./usr/bin/promtool"])
        (Path(folder) / "usr/bin/promtool").replace(kept)
    return kept


def expressions(board: dict[str, Any]) -> Iterator[str]:
    """What the panels of a dashboard ask for, with variables filled in as Grafana does."""
    for panel in board["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in _VARIABLES.items():
                text = text.replace(variable, value)
            yield text


def accepted(tool: Path, *words: str | Path) -> str:
    """Run promtool; return what it has against its input, nothing where it accepts it."""
    done = subprocess.run([tool, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout.strip()


def check(tally: Tally, copied: Path) -> None:
    """Have promtool read the rules, the configuration and the dashboard, and try the alerts on made-up figures."""
    tool = promtool()
    examples = copied / "docs" / "monitoring"
    tests = copied / "tests" / "data" / "monitoring" / "alerts.yml"
    rules = examples / "llamafleet.rules.yml"
    tally.check("promtool check rules", [tool, "check", "rules", rules])
    tally.check("promtool test rules", [tool, "test", "rules", tests])
    tried = {
        case["alertname"]
        for test in yaml.safe_load(tests.read_text("utf-8"))["tests"]
        for case in test["alert_rule_test"]
    }
    alerts = {rule["alert"] for group in yaml.safe_load(rules.read_text("utf-8"))["groups"] for rule in group["rules"]}
    tally.expect("every alert is tried", tried == alerts, f"not tried: {alerts - tried}; not there: {tried - alerts}")
    with tempfile.TemporaryDirectory() as folder:
        # With the key's file, which it looks for, and with rules that it must not accept.
        shutil.copytree(examples, folder, dirs_exist_ok=True)
        key, configuration = Path(folder) / "key", Path(folder) / "prometheus.yml"
        key.touch()
        text, found = re.subn(r"(credentials_file: ).*", rf"\1{key}", configuration.read_text(encoding="utf-8"))
        configuration.write_text(text, encoding="utf-8")
        tally.expect("the configuration names the file of a key", found == 1, f"{found} times")
        tally.check("promtool check config", [tool, "check", "config", configuration])
        board = json.loads((examples / "grafana-dashboard.json").read_text(encoding="utf-8"))
        recorded = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions(board))]
        panels = Path(folder) / "panels.yml"
        panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}), encoding="utf-8")
        tally.check("promtool reads every panel of the dashboard", [tool, "check", "rules", panels])
        recorded[0]["expr"] += ")"
        panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}), encoding="utf-8")
        tally.expect("promtool refuses what it cannot read", accepted(tool, "check", "rules", panels) != "", "accepted")
