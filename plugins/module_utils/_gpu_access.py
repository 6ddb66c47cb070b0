# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide what has to be done so that the right users, and no more than were asked for, can open the GPUs' device nodes.

Private to the collection: may change at any time, not for use from elsewhere.

Nothing here touches the host: the state goes in, and a list of steps and the new record of what was given come out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RECORD = "/var/lib/llamafleet/gpu_access.json"
MODULES_FILE = "/etc/modules-load.d/llamafleet-nvidia.conf"
DRM_RULES = "/etc/udev/rules.d/72-llamafleet-gpu.rules"
UVM_RULES = "/etc/udev/rules.d/72-llamafleet-nvidia.rules"

_HEADER = "# Written by llamafleet.turboquant, role gpu_access; taken away with gpu_access_state: absent.\n"
CONTENTS = {
    # Without it the module is loaded by the setuid helper nvidia-modprobe, which NoNewPrivileges= of a unit disables.
    MODULES_FILE: _HEADER + "nvidia-uvm\n",
    DRM_RULES: _HEADER
    + 'SUBSYSTEM=="kfd", KERNEL=="kfd", GROUP="render", MODE="0660"\n'
    + 'SUBSYSTEM=="drm", KERNEL=="renderD*", GROUP="render", MODE="0660"\n'
    + 'SUBSYSTEM=="drm", KERNEL=="card[0-9]*", GROUP="video", MODE="0660"\n',
    UVM_RULES: _HEADER
    + 'ACTION=="add", DEVPATH=="/module/nvidia_uvm", SUBSYSTEM=="module", RUN+="/usr/bin/nvidia-modprobe -c=0 -u"\n',
}


@dataclass(frozen=True)
class Step:
    """One change: a command to run, a file to write or to remove, a group to copy, or a node to hand to its group."""

    kind: str
    words: str
    argv: tuple[str, ...] = ()
    path: str = ""
    content: str = ""
    mode: int = 0


@dataclass
class Group:
    gid: int
    members: set[str] = field(default_factory=set)
    # Whether the group stands in /etc/group: on ostree systems many stand in /usr/lib/group alone, where no tool adds a
    # member to them.
    local: bool = True


@dataclass
class State:
    """What the host is like."""

    groups: dict[str, Group]
    users: dict[str, int]  # name to the number of the primary group
    nodes: Sequence[Mapping[str, Any]] = ()  # path, mode (an int), gid
    files: Mapping[str, str | None] = field(default_factory=dict)
    nvidia_loaded: bool = False
    uvm_loaded: bool = False
    uvm_node: bool = False
    uvm_rule_packaged: bool = False
    nvidia_modprobe: bool = False


@dataclass
class Wish:
    """What the role's variables ask for."""

    users: Sequence[str] = ()
    service_user: str = ""
    groups: Sequence[str] = ("video", "render")
    udev: str = "auto"
    nvidia_uvm: str = "auto"
    present: bool = True


@dataclass
class Record:
    """What earlier runs gave, and so what may be taken back."""

    granted: dict[str, list[str]] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def text(self) -> str:
        granted = {user: sorted(set(groups)) for user, groups in sorted(self.granted.items()) if groups}
        content = {
            "granted": granted,
            "groups": sorted(set(self.groups)),
            "users": sorted(set(self.users)),
            "files": sorted(set(self.files)),
        }
        return json.dumps(content, indent=2) + "\n"

    @property
    def empty(self) -> bool:
        return not (self.granted or self.groups or self.users or self.files)

    def merged(self, other: Record) -> Record:
        users = {*self.granted, *other.granted}
        return Record(
            {user: [*self.granted.get(user, ()), *other.granted.get(user, ())] for user in users},
            [*self.groups, *other.groups],
            [*self.users, *other.users],
            [*self.files, *other.files],
        )


def read_record(text: str | None) -> Record:
    """Return the record of a file's text; raises ValueError where it is none."""
    if text is None:
        return Record()
    try:
        content = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"{RECORD} is not JSON ({exc})") from exc
    names = {"granted": dict, "groups": list, "users": list, "files": list}
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in names.items()):
        raise ValueError(f"{RECORD} does not hold the keys {', '.join(names)}")
    return Record(
        {str(user): [str(group) for group in groups] for user, groups in content["granted"].items()},
        [str(name) for name in content["groups"]],
        [str(name) for name in content["users"]],
        [str(name) for name in content["files"] if name in CONTENTS],
    )


@dataclass
class Plan:
    steps: list[Step]
    record: Record
    groups: list[str]  # those that the users are to be in
    missing_users: list[str]


def _out_of_reach(node: Mapping[str, Any]) -> bool:
    """Say whether no group can give access to a node."""
    mode = int(node["mode"])
    return mode & 0o006 != 0o006 and (node["gid"] == 0 or mode & 0o060 != 0o060)


def home_group(path: str) -> str:
    """Return the group that udev's rules give a node to."""
    return "video" if re.fullmatch(r"/dev/dri/card[0-9]+", path) else "render"


class _Planner:
    def __init__(self, wish: Wish, state: State, record: Record) -> None:
        self.wish = wish
        self.state = state
        self.old = record
        self.record = Record(groups=list(record.groups), users=list(record.users), files=list(record.files))
        self.steps: list[Step] = []
        self.groups = {name: Group(group.gid, set(group.members), group.local) for name, group in state.groups.items()}

    def run(self, words: str, *argv: str) -> None:
        self.steps.append(Step("run", words, argv=argv))

    def create_group(self, name: str, gid: int | None = None) -> None:
        number = () if gid is None else ("-g", str(gid))
        described = f"create the group {name}" + ("" if gid is None else f" with the number {gid} of the device node")
        self.run(described, "groupadd", "-r", *number, name)
        self.groups[name] = Group(-1 if gid is None else gid)
        self.record.groups.append(name)

    def access_groups(self) -> list[str]:
        """Return the groups to be in, and create those that are missing, with the numbers that the nodes have."""
        wanted = list(self.wish.groups)
        numbers = {group.gid: name for name, group in sorted(self.groups.items())}
        for node in self.state.nodes:
            if _out_of_reach(node) or int(node["mode"]) & 0o006 == 0o006:
                continue
            gid = int(node["gid"])
            if gid not in numbers:
                name = home_group(str(node["path"]))
                if name in self.groups:
                    name = f"gpu-{gid}"
                self.create_group(name, gid)
                numbers[gid] = name
            if numbers[gid] not in wanted:
                wanted.append(numbers[gid])
        for name in wanted:
            if name not in self.groups:
                self.create_group(name)
        return wanted

    def create_service_user(self) -> None:
        name = self.wish.service_user
        if not name or name in self.state.users:
            return
        if name not in self.groups:
            self.create_group(name)
        # As the role llama_server makes it, which finds nothing to change afterwards.
        self.run(
            f"create the system user {name}",
            *("useradd", "-r", "-g", name, "-d", "/nonexistent", "-M", "-s", "/usr/sbin/nologin"),
            *("-c", "llama-server instances", name),
        )
        self.record.users.append(name)

    def is_member(self, user: str, name: str) -> bool:
        group = self.groups.get(name)
        return group is not None and (user in group.members or self.state.users.get(user) == group.gid)

    def give(self, user: str, names: Iterable[str]) -> None:
        kept = self.old.granted.get(user, [])
        for name in names:
            if self.is_member(user, name):
                if name in kept:
                    self.record.granted.setdefault(user, []).append(name)
                continue
            if not self.groups[name].local:
                line = f"{name}:x:{self.groups[name].gid}:"
                self.steps.append(
                    Step("group", f"copy the group {name} to /etc/group, where members can be added", content=line)
                )
                self.groups[name].local = True
            self.run(f"add {user} to {name}", "usermod", "-a", "-G", name, user)
            self.groups[name].members.add(user)
            self.record.granted.setdefault(user, []).append(name)

    def take_back(self, user: str, names: Iterable[str]) -> None:
        for name in names:
            if user in self.state.users and name in self.groups and user in self.groups[name].members:
                self.run(f"take {user} out of {name}", "gpasswd", "-d", user, name)
                self.groups[name].members.discard(user)

    def keep_file(self, path: str) -> bool:
        if path not in self.record.files:
            self.record.files.append(path)
        if self.state.files.get(path) == CONTENTS[path]:
            return False
        self.steps.append(Step("write", f"write {path}", path=path, content=CONTENTS[path], mode=0o644))
        return True

    def drop_file(self, path: str) -> bool:
        if path not in self.old.files:
            return False
        self.record.files = [name for name in self.record.files if name != path]
        if self.state.files.get(path) is None:
            return False
        self.steps.append(Step("remove", f"remove {path}", path=path))
        return True

    def nodes(self) -> None:
        """Hand nodes that no group can open to their group, now by chown and from then on by a rule."""
        lost = [node for node in self.state.nodes if _out_of_reach(node)]
        # Once the rule is there it is what keeps the nodes in reach, so it stays.
        ours = DRM_RULES in self.old.files and self.state.files.get(DRM_RULES) is not None
        wanted = self.wish.udev == "always" or (self.wish.udev == "auto" and (bool(lost) or ours))
        changed = self.keep_file(DRM_RULES) if wanted else self.drop_file(DRM_RULES)
        if changed:
            self.run("have udev read its rules again", "udevadm", "control", "--reload")
        if not wanted:
            return
        for node in lost:
            path = str(node["path"])
            name = home_group(path)
            if name not in self.groups:
                self.create_group(name)
            self.steps.append(Step("node", f"give {path} to the group {name}", path=path, content=name, mode=0o660))

    def nvidia(self) -> None:
        wanted = self.wish.nvidia_uvm == "always" or (self.wish.nvidia_uvm == "auto" and self.state.nvidia_loaded)
        if not wanted:
            self.drop_file(MODULES_FILE)
            if self.drop_file(UVM_RULES):
                self.run("have udev read its rules again", "udevadm", "control", "--reload")
            return
        self.keep_file(MODULES_FILE)
        if self.state.nvidia_modprobe and not self.state.uvm_rule_packaged:
            changed = self.keep_file(UVM_RULES)
        else:
            changed = self.drop_file(UVM_RULES)
        if changed:
            self.run("have udev read its rules again", "udevadm", "control", "--reload")
        if self.state.uvm_node:
            return
        if not self.state.uvm_loaded:
            self.run("load the module nvidia-uvm", "modprobe", "nvidia-uvm")
        if self.state.nvidia_modprobe:
            self.run("make the device nodes of nvidia-uvm", "nvidia-modprobe", "-c=0", "-u")

    def apply(self) -> Plan:
        groups = self.access_groups()
        users = [user for user in dict.fromkeys((self.wish.service_user, *self.wish.users)) if user]
        self.create_service_user()
        known = {*self.state.users, *self.record.users}
        missing = [user for user in users if user not in known]
        for user in users:
            if user not in missing:
                self.give(user, groups)
        for user, given in sorted(self.old.granted.items()):
            self.take_back(user, [name for name in given if user not in users or name not in groups])
            if user in missing:
                self.record.granted[user] = list(given)
        self.nodes()
        self.nvidia()
        return Plan(self.steps, self.record, groups, missing)

    def undo(self) -> Plan:
        for user, given in sorted(self.old.granted.items()):
            self.take_back(user, given)
        reload = False
        for path in CONTENTS:
            reload = (self.drop_file(path) and path in (DRM_RULES, UVM_RULES)) or reload
        if reload:
            self.run("have udev read its rules again", "udevadm", "control", "--reload")
        for user in sorted(self.old.users):
            if user in self.state.users:
                self.run(f"remove the user {user}", "userdel", user)
        primary = {gid for user, gid in self.state.users.items() if user not in self.old.users}
        in_use = primary | {int(node["gid"]) for node in self.state.nodes}
        for name in sorted(self.old.groups):
            group = self.groups.get(name)
            # userdel takes away a user's own group of the same name.
            if group is None or name in self.old.users:
                continue
            if not group.members - set(self.old.users) and group.gid not in in_use:
                self.run(f"remove the group {name}", "groupdel", name)
        return Plan(self.steps, Record(), [], [])


def make_plan(wish: Wish, state: State, record: Record) -> Plan:
    """Return the steps from the state to what is wished for, and the record that belongs to it."""
    planner = _Planner(wish, state, record)
    return planner.apply() if wish.present else planner.undo()
