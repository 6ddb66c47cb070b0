# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules against a double of firewalld; the scenario firewall has the real one."""

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _firewall
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_instance as rules
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances

TEN = 'rule family="ipv4" source address="10.0.0.0/8" port port="8080" protocol="tcp" accept'
ALL = 'rule port port="8080" protocol="tcp" accept'
THEIRS = 'rule service name="http" accept'


class Firewalld:
    """Answers as firewall-cmd 2.5 does, by what was seen of it."""

    def __init__(self, tmp_path, monkeypatch):
        self.running = True
        self.installed = True
        self.zones = {"public": (set(), set()), "internal": (set(), set())}
        self.changes = []
        self.asked = 0
        self.fail_at = None
        self.firewall = _firewall.Firewall(self.run, tmp_path / "record")
        monkeypatch.setattr(
            _firewall.shutil, "which", lambda name, path: f"/usr/bin/{name}" if self.installed else None
        )

    def run(self, words):
        self.asked += 1
        command, *rest = words
        if not self.installed:
            raise AssertionError("a program that is not there was called")
        if command == "firewall-cmd" and not self.running:
            return 252, "", "FirewallD is not running"
        if rest == ["--state"]:
            return 0, "running", ""
        if rest == ["--get-zones"]:
            return 0, " ".join(self.zones), ""
        if rest == ["--get-default-zone"]:
            return 0, "public", ""
        permanent = rest[0] == "--permanent" or command == "firewall-offline-cmd"
        zone, action = rest[1:] if rest[0] == "--permanent" else rest
        if zone[len("--zone=") :] not in self.zones:
            return 112, "", "INVALID_ZONE"
        config = self.zones[zone[len("--zone=") :]][0 if permanent else 1]
        if action == "--list-rich-rules":
            return 0, "\n".join(sorted(config)), ""
        verb, text = action.split("=", 1)
        if self.fail_at is not None and len(self.changes) == self.fail_at:
            return 1, "", "no"
        self.changes.append(verb)
        config.add(text) if verb == "--add-rich-rule" else config.discard(text)
        return 0, "success", ""

    def write(self, path, text):
        path.unlink(missing_ok=True) if text is None else path.write_text(text, encoding="utf-8")

    def bring(self, asking, waiting=None):
        plan = self.firewall.plan(asking, waiting or {})
        self.firewall.apply(plan, self.write)
        return plan

    def rules(self, zone="public"):
        return self.zones[zone]


@pytest.fixture
def firewalld(tmp_path, monkeypatch):
    return Firewalld(tmp_path, monkeypatch)


def chat(zone="", sources=("10.0.0.0/8",), port=8080):
    return {"chat": {"zone": zone, "sources": list(sources), "port": port}}


def test_nothing_is_asked_of_a_host_where_nothing_is_wanted(firewalld):
    firewalld.installed = False
    assert firewalld.bring({}) == _firewall.Plan()
    assert firewalld.asked == 0
    assert not firewalld.firewall.record.exists()


def test_a_port_is_opened_at_once_and_for_good_and_closed_again(firewalld):
    firewalld.rules()[0].add(THEIRS)
    plan = firewalld.bring(chat())
    assert plan.opened == [f"public: {TEN}"]
    assert firewalld.rules() == ({THEIRS, TEN}, {TEN})
    # Again: nothing to do.
    assert firewalld.bring(chat()).opened == []
    assert firewalld.changes == ["--add-rich-rule"] * 2
    plan = firewalld.bring({})
    assert plan.closed == [f"public: {TEN}"]
    assert firewalld.rules() == ({THEIRS}, set())
    assert not firewalld.firewall.record.exists()


def test_another_source_port_or_zone_takes_the_old_rule_along(firewalld):
    firewalld.bring(chat())
    firewalld.bring(chat(sources=["2001:db8::/32"], port=9090))
    six = 'rule family="ipv6" source address="2001:db8::/32" port port="9090" protocol="tcp" accept'
    assert firewalld.rules() == ({six}, {six})
    firewalld.bring(chat(zone="internal", sources=[]))
    assert firewalld.rules() == (set(), set())
    assert firewalld.rules("internal") == ({ALL}, {ALL})


def test_a_rule_that_was_there_before_stays_when_ours_go(firewalld):
    firewalld.rules()[0].add(TEN)
    firewalld.bring(chat())
    assert firewalld.rules() == ({TEN}, {TEN})
    firewalld.bring({})
    assert firewalld.rules()[0] == {TEN}


def test_two_instances_keep_a_rule_until_the_last_goes(firewalld):
    firewalld.bring({**chat(), "more": chat()["chat"]})
    firewalld.bring({"more": chat()["chat"]})
    assert firewalld.rules() == ({TEN}, {TEN})


def test_what_somebody_took_away_is_lacking_and_comes_back(firewalld):
    firewalld.bring(chat())
    firewalld.rules()[1].clear()
    assert firewalld.firewall.plan(chat(), {}).lacking == {"chat": [("public", TEN)]}
    firewalld.bring(chat())
    assert firewalld.rules() == ({TEN}, {TEN})


def test_an_instance_that_waits_keeps_what_it_had_and_gets_nothing_new(firewalld):
    firewalld.bring(chat())
    assert firewalld.bring({}, chat()).closed == []
    assert firewalld.rules() == ({TEN}, {TEN})
    firewalld.bring({}, chat(port=9090))
    assert firewalld.rules() == (set(), set())


def test_planning_changes_nothing(firewalld):
    firewalld.firewall.plan(chat(), {})
    assert firewalld.changes == []
    assert not firewalld.firewall.record.exists()


@pytest.mark.parametrize("changes", [0, 1])
def test_a_run_that_ends_half_way_is_made_good_by_the_next(firewalld, changes):
    firewalld.fail_at = changes
    with pytest.raises(_firewall.FirewallError, match=r"add-rich-rule=.* failed: no"):
        firewalld.bring(chat())
    firewalld.fail_at = None
    firewalld.bring({})
    assert firewalld.rules() == (set(), set())
    assert not firewalld.firewall.record.exists()


def test_a_zone_that_somebody_removed_is_no_obstacle(firewalld):
    firewalld.bring(chat(zone="internal"))
    del firewalld.zones["internal"]
    firewalld.bring({})
    assert not firewalld.firewall.record.exists()


def test_taken_back_while_firewalld_is_stopped(firewalld):
    firewalld.bring(chat())
    firewalld.running = False
    firewalld.bring({})
    assert firewalld.rules()[0] == set()
    assert not firewalld.firewall.record.exists()


def test_taken_back_after_firewalld_was_removed(firewalld):
    firewalld.bring(chat())
    firewalld.installed = False
    firewalld.bring({})
    assert not firewalld.firewall.record.exists()


@pytest.mark.parametrize("state", ["running", "installed"])
def test_refused_where_firewalld_does_not_run(firewalld, state):
    setattr(firewalld, state, False)
    with pytest.raises(_firewall.FirewallError, match="'chat': firewall is asked for, but firewalld does not run"):
        firewalld.bring(chat())


def test_a_zone_that_is_not_there_is_refused(firewalld):
    with pytest.raises(_firewall.FirewallError, match="'office' is no zone of this host; it has public, internal"):
        firewalld.bring(chat(zone="office"))


def asked(firewall, **more):
    raw = {"name": "a", "model": "m", "port": 8080, "ctx_size": 4096, "host": "0.0.0.0", "allow_open": True}
    return rules.complete({**raw, "firewall": firewall, **more}, llama_instances.DEFAULTS)["firewall"]


def test_what_an_instance_may_ask_for():
    assert asked(None) is None
    assert asked({}) is None
    assert asked({"zone": None, "sources": None}) is None
    assert asked({"zone": "work"}) == {"zone": "work", "sources": [], "port": 8080}
    two = ["fd00::/8", "10.1.2.3", "10.1.2.3"]
    assert asked({"sources": two}) == {"zone": "", "sources": ["10.1.2.3/32", "fd00::/8"], "port": 8080}
    assert asked({"sources": ["10.1.0.0/16"]}, allow_from=["10.0.0.0/8"])["sources"] == ["10.1.0.0/16"]


@pytest.mark.parametrize(
    ("firewall", "more", "said"),
    [
        ({"zone": "work"}, {"host": "127.0.0.1"}, "'a': firewall is asked for, but host 127.0.0.1 can be reached from"),
        ({"zone": "work"}, {"host": "/run/llamafleet/a/api.sock"}, "listen on an address of the network"),
        ({"sources": ["10.0.0.1/8"]}, {}, "host bits set; write it like 10.0.0.0/8"),
        ({"sources": []}, {}, "firewall.sources is empty; list networks, leave it out for everybody"),
        ({"zone": "a b"}, {}, "'a b' is no name of a zone"),
        ({"sources": ["192.0.2.0/24"]}, {"allow_from": ["10.0.0.0/8"]}, "is outside of allow_from \\(10.0.0.0/8\\)"),
        ({"ports": [1]}, {}, "firewall has no setting ports"),
        (True, {}, "firewall is True, but must be a mapping"),
    ],
)
def test_what_is_refused_before_anything_is_looked_at(firewall, more, said):
    with pytest.raises(rules.InstanceError, match=said):
        asked(firewall, **more)
