# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gpu_access import (
    CONTENTS,
    DRM_RULES,
    MODULES_FILE,
    UVM_RULES,
    Group,
    Record,
    State,
    Wish,
    make_plan,
    read_record,
)

RENDER, VIDEO = 105, 39
NODES = (
    {"path": "/dev/kfd", "mode": 0o666, "gid": RENDER},
    {"path": "/dev/dri/card1", "mode": 0o660, "gid": VIDEO},
    {"path": "/dev/dri/renderD128", "mode": 0o660, "gid": RENDER},
)


class Host:
    """A host that carries out steps as the real tools would."""

    def __init__(self, groups=None, users=None, **state):
        default = {"root": Group(0), "video": Group(VIDEO), "render": Group(RENDER)}
        self.groups = default if groups is None else groups
        self.users = {"root": 0, "anna": 1000, "bert": 1001} if users is None else users
        self.files = dict.fromkeys(CONTENTS)
        self.state = {"nodes": NODES, **state}
        self.record = Record()
        self.done = []

    def apply(self, **wish):
        plan = make_plan(Wish(**wish), State(self.groups, self.users, files=self.files, **self.state), self.record)
        for step in plan.steps:
            self.carry_out(step)
        self.done = [" ".join(step.argv) or step.words for step in plan.steps]
        self.record = read_record(plan.record.text())
        self.plan = plan
        return self.done

    def carry_out(self, step):
        argv = step.argv
        if step.kind == "write":
            self.files[step.path] = step.content
        elif step.kind == "remove":
            self.files[step.path] = None
        elif step.kind == "group":
            self.groups[step.content.partition(":")[0]].local = True
        elif step.kind == "node":
            gid = self.groups[step.content].gid
            nodes = ({**n, "mode": step.mode, "gid": gid} if n["path"] == step.path else n for n in self.state["nodes"])
            self.state["nodes"] = tuple(nodes)
        elif argv[0] == "groupadd":
            free = max(group.gid for group in self.groups.values()) + 1
            self.groups[argv[-1]] = Group(int(argv[3]) if argv[2] == "-g" else free)
        elif argv[0] == "useradd":
            self.users[argv[-1]] = self.groups[argv[3]].gid
        elif argv[0] == "usermod":
            assert self.groups[argv[3]].local, "usermod sees the groups of /etc/group only"
            self.groups[argv[3]].members.add(argv[4])
        elif argv[0] == "gpasswd":
            self.groups[argv[3]].members.remove(argv[2])
        elif argv[0] == "userdel":
            del self.users[argv[1]]
            self.groups.pop(argv[1], None)
            for group in self.groups.values():
                group.members.discard(argv[1])
        elif argv[0] == "groupdel":
            del self.groups[argv[1]]
        elif argv[0] == "nvidia-modprobe" or argv == ("modprobe", "nvidia-uvm"):
            self.state.update(uvm_node=True, uvm_loaded=True)
        else:
            assert argv[0] == "udevadm", step

    def members(self, name):
        return sorted(self.groups[name].members)


def test_users_get_the_groups_of_the_nodes_and_the_second_run_does_nothing():
    host = Host()
    assert host.apply(users=["anna"], service_user="llamafleet") == [
        "groupadd -r llamafleet",
        "useradd -r -g llamafleet -d /nonexistent -M -s /usr/sbin/nologin -c llama-server instances llamafleet",
        "usermod -a -G video llamafleet",
        "usermod -a -G render llamafleet",
        "usermod -a -G video anna",
        "usermod -a -G render anna",
    ]
    assert host.members("render") == ["anna", "llamafleet"]
    before = host.record.text()
    assert host.apply(users=["anna"], service_user="llamafleet") == []
    assert host.record.text() == before
    assert host.plan.groups == ["video", "render"]


def test_groups_that_are_missing_are_created():
    host = Host(groups={"root": Group(0)}, nodes=())
    assert host.apply(users=["anna"])[:2] == ["groupadd -r video", "groupadd -r render"]
    assert host.record.groups == ["render", "video"]


def test_a_number_without_a_name_becomes_the_missing_group():
    nodes = ({"path": "/dev/kfd", "mode": 0o660, "gid": 110}, {"path": "/dev/dri/card0", "mode": 0o660, "gid": 44})
    host = Host(groups={"root": Group(0)}, nodes=nodes)
    host.apply(users=["anna"])
    assert (host.groups["render"].gid, host.groups["video"].gid) == (110, 44)
    assert host.done[:2] == ["groupadd -r -g 110 render", "groupadd -r -g 44 video"]
    assert host.members("render") == ["anna"]


def test_a_number_without_a_name_beside_a_group_of_another_number():
    host = Host(nodes=({"path": "/dev/kfd", "mode": 0o660, "gid": 110},))
    host.apply(users=["anna"])
    assert host.done[0] == "groupadd -r -g 110 gpu-110"
    assert host.plan.groups == ["video", "render", "gpu-110"]
    assert host.members("gpu-110") == ["anna"]


def test_the_real_owner_group_counts_whatever_its_name():
    groups = {"root": Group(0), "video": Group(VIDEO), "render": Group(RENDER), "gpu": Group(500)}
    host = Host(groups=groups, nodes=({"path": "/dev/dri/renderD128", "mode": 0o660, "gid": 500},))
    host.apply(users=["anna"])
    assert host.members("gpu") == ["anna"]
    # Where everybody may open the node, no membership is given for it.
    host = Host(groups={**groups, "gpu": Group(500)}, nodes=({"path": "/dev/kfd", "mode": 0o666, "gid": 500},))
    host.apply(users=["anna"])
    assert host.members("gpu") == []


def test_only_what_was_given_is_taken_back():
    host = Host()
    host.groups["video"].members.add("anna")  # by somebody else
    host.apply(users=["anna", "bert"])
    assert host.record.granted["anna"] == ["render"]
    assert host.apply(users=["bert"]) == ["gpasswd -d anna render"]
    assert host.members("video") == ["anna", "bert"]
    assert host.members("render") == ["bert"]
    assert "anna" not in host.record.granted
    assert host.apply(users=["bert"]) == []


def test_a_group_that_is_no_longer_wanted_is_taken_back():
    host = Host(groups={"root": Group(0), "video": Group(VIDEO), "render": Group(RENDER), "audio": Group(63)})
    host.apply(users=["anna"], groups=["render", "audio"])
    assert host.members("audio") == ["anna"]
    assert host.apply(users=["anna"], groups=["render"]) == ["gpasswd -d anna audio"]


def test_a_membership_lost_by_hand_comes_back_and_stays_recorded():
    host = Host()
    host.apply(users=["anna"])
    host.groups["render"].members.remove("anna")
    assert host.apply(users=["anna"]) == ["usermod -a -G render anna"]
    assert host.record.granted == {"anna": ["render", "video"]}


def test_a_user_who_is_gone_leaves_the_record():
    host = Host()
    host.apply(users=["anna"])
    del host.users["anna"]
    for group in host.groups.values():
        group.members.discard("anna")
    assert host.apply(users=[]) == []
    assert host.record.empty


def test_users_that_do_not_exist_are_named():
    host = Host()
    host.apply(users=["anna", "carla"])
    assert host.plan.missing_users == ["carla"]


def test_the_primary_group_is_a_membership():
    host = Host(users={"root": 0, "anna": RENDER})
    assert host.apply(users=["anna"]) == ["usermod -a -G video anna"]
    assert host.record.granted == {"anna": ["video"]}


def test_a_group_that_stands_in_usr_lib_is_copied_before_it_gets_a_member():
    groups = {"root": Group(0), "video": Group(VIDEO), "render": Group(RENDER, local=False)}
    host = Host(groups=groups)
    host.apply(users=["anna", "bert"])
    copies = [step.content for step in host.plan.steps if step.kind == "group"]
    assert copies == [f"render:x:{RENDER}:"]


@pytest.mark.parametrize("node", [{"mode": 0o600, "gid": 0}, {"mode": 0o660, "gid": 0}, {"mode": 0o640, "gid": RENDER}])
def test_a_node_out_of_reach_gets_a_rule_and_its_group_and_keeps_them(node):
    host = Host(nodes=({"path": "/dev/kfd", **node}, *NODES[1:]))
    done = host.apply(users=["anna"])
    assert done[-3:] == [f"write {DRM_RULES}", "udevadm control --reload", "give /dev/kfd to the group render"]
    assert host.state["nodes"][0] == {"path": "/dev/kfd", "mode": 0o660, "gid": RENDER}
    # The rule is what keeps the node in reach from now on, so it is not dropped when the node is.
    assert host.apply(users=["anna"]) == []
    assert host.files[DRM_RULES] == CONTENTS[DRM_RULES]
    assert host.apply(users=["anna"], udev="never") == [f"remove {DRM_RULES}", "udevadm control --reload"]


def test_fedoras_default_gets_no_rule():
    host = Host()
    host.apply(users=["anna"])
    assert host.files == dict.fromkeys(CONTENTS)
    host.apply(users=["anna"], udev="always")
    assert host.files[DRM_RULES]


@pytest.mark.parametrize(
    ("state", "done", "files"),
    [
        ({}, [], []),
        (
            {"nvidia_loaded": True, "nvidia_modprobe": True},
            [
                f"write {MODULES_FILE}",
                f"write {UVM_RULES}",
                "udevadm control --reload",
                "modprobe nvidia-uvm",
                "nvidia-modprobe -c=0 -u",
            ],
            [MODULES_FILE, UVM_RULES],
        ),
        (
            {"nvidia_loaded": True, "nvidia_modprobe": True, "uvm_rule_packaged": True, "uvm_loaded": True},
            [f"write {MODULES_FILE}", "nvidia-modprobe -c=0 -u"],
            [MODULES_FILE],
        ),
        # The node is there now; the module has to come back after a reboot all the same.
        (
            {"nvidia_loaded": True, "uvm_node": True, "uvm_loaded": True},
            [f"write {MODULES_FILE}"],
            [MODULES_FILE],
        ),
        ({"nvidia_loaded": True}, [f"write {MODULES_FILE}", "modprobe nvidia-uvm"], [MODULES_FILE]),
    ],
)
def test_nvidia_uvm(state, done, files):
    host = Host(users={"root": 0}, nodes=(), **state)
    assert host.apply() == done
    assert sorted(path for path, content in host.files.items() if content) == sorted(files)
    assert host.apply() == []


def test_nvidia_uvm_is_dropped_with_the_driver_or_by_wish():
    host = Host(users={"root": 0}, nodes=(), nvidia_loaded=True, nvidia_modprobe=True)
    host.apply()
    assert host.apply(nvidia_uvm="never") == [
        f"remove {MODULES_FILE}",
        f"remove {UVM_RULES}",
        "udevadm control --reload",
    ]
    host.state["nvidia_loaded"] = False
    host.state["uvm_node"] = False
    assert host.apply(nvidia_uvm="always")[0] == f"write {MODULES_FILE}"


def test_absent_takes_back_all_and_nothing_else():
    host = Host(
        groups={"root": Group(0), "video": Group(VIDEO, {"anna"})},
        nodes=({"path": "/dev/dri/card0", "mode": 0o600, "gid": 0},),
        nvidia_loaded=True,
        nvidia_modprobe=True,
    )
    before = {name: set(group.members) for name, group in host.groups.items()}
    host.apply(users=["anna", "bert"], service_user="llamafleet")
    assert host.files[DRM_RULES]
    assert host.files[MODULES_FILE]
    assert sorted(host.groups) == ["llamafleet", "render", "root", "video"]
    host.apply(present=False)
    assert host.files == dict.fromkeys(CONTENTS)
    assert {name: group.members for name, group in host.groups.items()} == before
    assert sorted(host.users) == ["anna", "bert", "root"]
    assert host.record.empty
    assert host.apply(present=False) == []


def test_absent_keeps_a_group_that_others_use():
    host = Host(groups={"root": Group(0), "video": Group(VIDEO)}, nodes=())
    host.apply(users=["anna"])
    host.groups["render"].members.add("bert")
    host.apply(present=False)
    assert host.members("render") == ["bert"]
    # And one that a device node belongs to.
    host = Host(
        groups={"root": Group(0), "video": Group(VIDEO)}, nodes=({"path": "/dev/kfd", "mode": 0o660, "gid": 9},)
    )
    host.apply(users=["anna"])
    host.apply(present=False)
    assert host.groups["render"].gid == 9


def test_a_run_that_was_cut_off_can_be_undone():
    """The union of both records is written before the first step, so whatever was given by then is in it."""
    old = Record(granted={"anna": ["video"]}, files=[MODULES_FILE])
    new = Record(granted={"anna": ["render"], "bert": ["video"]}, users=["llamafleet"], groups=["render"])
    both = read_record(old.merged(new).text())
    assert both.granted == {"anna": ["render", "video"], "bert": ["video"]}
    assert both.files == [MODULES_FILE]
    assert both.users == ["llamafleet"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "does not hold the keys granted, groups, users, files"),
        (json.dumps({"granted": []}), "does not hold the keys"),
    ],
)
def test_a_broken_record_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        read_record(text)


def test_a_record_names_no_foreign_file():
    text = json.dumps({"granted": {}, "groups": [], "users": [], "files": ["/etc/passwd", MODULES_FILE]})
    assert read_record(text).files == [MODULES_FILE]
