# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of firewalld for the ports of instances: the wanted ones there, ours that are no longer wanted gone.

ansible.posix.firewalld sets one rule that it is told of. Here the rules of an earlier run have to be found again, and
firewalld has no place for the name of a rule's owner (a service of our own would be one, but needs a reload, which
drops what others have at run time only). So a file says which rules were added by us, and no other is ever removed.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ZONE = re.compile(r"[A-Za-z0-9_/-]{1,64}")
_INVALID_ZONE = 112

Run = Callable[[list[str]], tuple[int, str, str]]
Rule = tuple[str, str]  # the zone, and the text as firewalld prints it


class FirewallError(ValueError):
    """The rules cannot be as they are asked for; the text says why and what would be right."""


def settings(asked: Any, host: str, local: bool, allow_from: Iterable[str]) -> dict[str, Any] | None:
    """Check what an instance asks for; None where it asks for nothing."""
    if asked is not None and not isinstance(asked, dict):
        raise FirewallError(f"firewall is {asked!r}, but must be a mapping with zone, sources, or both")
    given = {key: value for key, value in (asked or {}).items() if value is not None}
    unknown = sorted(set(given) - {"zone", "sources"})
    if unknown:
        raise FirewallError(f"firewall has no setting {', '.join(unknown)}; it has zone and sources")
    if not given:
        return None
    if local:
        raise FirewallError(
            f"firewall is asked for, but host {host} can be reached from this machine alone; listen on an address of "
            "the network, or leave firewall out"
        )
    zone = str(given.get("zone", ""))
    if "zone" in given and not _ZONE.fullmatch(zone):
        raise FirewallError(f"firewall.zone {zone!r} is no name of a zone, such as public or internal")
    sources = []
    listed = given.get("sources", [])
    for source in listed if isinstance(listed, list) else [listed]:
        try:
            network = ipaddress.ip_network(str(source), strict=True)
        except ValueError as exc:
            raise FirewallError(f"firewall.sources {str(source)!r}: {exc}; write it like 10.0.0.0/8") from None
        allowed = [ipaddress.ip_network(str(address)) for address in allow_from]
        if allowed and not any(other.version == network.version and other.overlaps(network) for other in allowed):
            raise FirewallError(
                f"firewall.sources {network} is outside of allow_from ({', '.join(map(str, allowed))}), so systemd "
                "would drop its packets; list it there too, or leave it out here"
            )
        sources.append(str(network))
    if "sources" in given and not sources:
        raise FirewallError(
            "firewall.sources is empty; list networks, leave it out for everybody in the zone, or leave firewall out"
        )
    return {"zone": zone, "sources": sorted(set(sources))}


def texts(port: int, sources: list[str]) -> list[str]:
    """The rules of one port, spelled as firewalld prints them."""
    opened = f'port port="{port}" protocol="tcp" accept'
    if not sources:
        return [f"rule {opened}"]
    return [f'rule family="ipv{ipaddress.ip_network(one).version}" source address="{one}" {opened}' for one in sources]


@dataclasses.dataclass
class Plan:
    """What is to be done: rules with whether the permanent (true) or the running configuration lacks or has them."""

    add: list[tuple[Rule, bool]] = dataclasses.field(default_factory=list)
    remove: list[tuple[Rule, bool]] = dataclasses.field(default_factory=list)
    ours: set[Rule] = dataclasses.field(default_factory=set)
    ours_before: set[Rule] = dataclasses.field(default_factory=set)
    lacking: dict[str, list[Rule]] = dataclasses.field(default_factory=dict)
    command: str = "firewall-cmd"

    @property
    def opened(self) -> list[str]:
        return sorted({f"{zone}: {text}" for (zone, text), _kept in self.add})

    @property
    def closed(self) -> list[str]:
        return sorted({f"{zone}: {text}" for (zone, text), _kept in self.remove})

    def difference(self) -> dict[str, str]:
        """What changes, for a diff."""
        lines = ["".join(f"{line}\n" for line in side) for side in (self.closed, self.opened)]
        return {"before": lines[0], "after": lines[1], "before_header": "firewalld", "after_header": "firewalld"}


class Firewall:
    """firewalld on this host, and the record of what was added to it."""

    def __init__(self, run: Run, record: Path) -> None:
        self.run = run
        self.record = record

    def recorded(self) -> set[Rule]:
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return set()
        return {(str(zone), str(text)) for zone, text in found}

    def note(self, rules: set[Rule]) -> str | None:
        """The record's text; None where there is nothing to remember."""
        return json.dumps(sorted(rules), indent=1) + "\n" if rules else None

    def _ask(self, *words: str, command: str = "firewall-cmd") -> str:
        rc, out, err = self.run([command, *words])
        if rc != 0:
            raise FirewallError(f"{command} {' '.join(words)} failed: {(err or out).strip()}")
        return out.strip()

    def _running(self) -> bool:
        if shutil.which("firewall-cmd", path=_PATH) is None:
            return False
        return self.run(["firewall-cmd", "--state"])[0] == 0

    def _rules(self, zone: str, *permanent: str, command: str = "firewall-cmd") -> set[str]:
        words = [*permanent, f"--zone={zone}", "--list-rich-rules"]
        rc, out, err = self.run([command, *words])
        if rc == _INVALID_ZONE:
            # Somebody removed the zone, and with it our rules.
            return set()
        if rc != 0:
            raise FirewallError(f"{command} {' '.join(words)} failed: {(err or out).strip()}")
        return {line.strip() for line in out.splitlines() if line.strip()}

    def _wanted(self, asking: dict[str, dict[str, Any]]) -> dict[str, list[Rule]]:
        if not asking:
            return {}
        name = min(asking)
        if not self._running():
            raise FirewallError(
                f"instance {name!r}: firewall is asked for, but firewalld does not run on this host; install and start "
                "it (dnf install firewalld, systemctl enable --now firewalld), or leave firewall out"
            )
        zones = self._ask("--get-zones").split()
        default = self._ask("--get-default-zone")
        wanted = {}
        for name, one in sorted(asking.items()):
            zone = one["zone"] or default
            if zone not in zones:
                raise FirewallError(
                    f"instance {name!r}: firewall.zone {zone!r} is no zone of this host; it has {', '.join(zones)}"
                )
            wanted[name] = [(zone, text) for text in texts(one["port"], one["sources"])]
        return wanted

    def plan(self, asking: dict[str, dict[str, Any]], waiting: dict[str, dict[str, Any]]) -> Plan:
        """Compare the host with what instances ask for by name, each with zone, port and sources.

        ``waiting`` are instances that are left as they are: what they had stays, and nothing is added.
        """
        ours = self.recorded()
        if not asking and not ours:
            return Plan()
        wanted = self._wanted(asking)
        kept = {text for one in waiting.values() for text in texts(one["port"], one["sources"])}
        all_wanted = {rule for rules in wanted.values() for rule in rules}
        stale = {rule for rule in ours - all_wanted if rule[1] not in kept}
        plan = Plan(ours_before=set(ours))
        running = bool(asking) or self._running()
        if not running:
            plan.command = "firewall-offline-cmd"
            if shutil.which(plan.command, path=_PATH) is None:
                # firewalld is gone, and what it was told with it.
                return plan
        for zone in sorted({zone for zone, _text in all_wanted | stale}):
            permanent = self._rules(zone, *(["--permanent"] if running else []), command=plan.command)
            now = self._rules(zone) if running else permanent
            for name, rules in wanted.items():
                for rule in rules:
                    if rule[0] != zone:
                        continue
                    lacks = [kept_on for kept_on, there in ((True, permanent), (False, now)) if rule[1] not in there]
                    plan.add += [(rule, kept_on) for kept_on in lacks if (rule, kept_on) not in plan.add]
                    if lacks:
                        plan.lacking.setdefault(name, []).append(rule)
                    # A rule that was there before is somebody else's and stays when ours go.
                    if rule in ours or True in lacks:
                        plan.ours.add(rule)
            for rule in sorted(stale):
                if rule[0] == zone:
                    plan.remove += [(rule, True)] if rule[1] in permanent else []
                    plan.remove += [(rule, False)] if running and rule[1] in now else []
        plan.ours |= ours - stale
        return plan

    def apply(self, plan: Plan, write: Callable[[Path, str | None], None]) -> None:
        """Carry the plan out. The record names a rule before it is added and until it is removed."""
        everything = plan.ours | plan.ours_before
        if everything != plan.ours_before:
            write(self.record, self.note(everything))
        for what, rules in (("add", plan.add), ("remove", plan.remove)):
            for (zone, text), permanent in rules:
                words = [f"--zone={zone}", f"--{what}-rich-rule={text}"]
                if permanent and plan.command == "firewall-cmd":
                    words.insert(0, "--permanent")
                self._ask(*words, command=plan.command)
        if plan.ours != everything:
            write(self.record, self.note(plan.ours))


__all__ = ["Firewall", "FirewallError", "Plan", "settings", "texts"]
