#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_access
short_description: Let users open the GPUs' device nodes, and take back what was given
version_added: 1.0.0
description:
  - Puts a service user and listed users into the groups that own the GPUs' device nodes (C(/dev/kfd),
    C(/dev/dri/card*), C(/dev/dri/renderD*)), read from the nodes themselves.
  - Creates the groups that are missing. A node whose group number has no name gets a group with that number.
  - Writes a udev rule only where a node belongs to root alone or its group may not write, so that the rules of the
    distribution would not do.
  - Where NVIDIA's driver is loaded, has C(nvidia-uvm) loaded now and at every boot, for the setuid helper that loads it
    otherwise does not work under C(NoNewPrivileges).
  - What it gave is recorded in C(/var/lib/llamafleet/gpu_access.json). A user who is no longer listed loses what is
    recorded there, and nothing that somebody else gave.
options:
  state:
    description: V(absent) takes back all that is recorded.
    type: str
    choices: [present, absent]
    default: present
  users:
    description: Users who may use the GPUs. Each must exist.
    type: list
    elements: str
    default: []
  expected_users:
    description:
      - Users that an earlier task of the same run creates. In check mode they may be missing.
    type: list
    elements: str
    default: []
  service_user:
    description:
      - System user of the services. Created with a group of its own name where it is missing, without shell and home.
      - Empty leaves it out.
    type: str
    default: llamafleet
  groups:
    description: Groups that each user is in, beside those that own a node.
    type: list
    elements: str
    default: [video, render]
  udev:
    description:
      - V(auto) writes the rule where a node could not be opened by any group, and keeps it from then on.
    type: str
    choices: [auto, always, never]
    default: auto
  nvidia_uvm:
    description: V(auto) cares for C(nvidia-uvm) where NVIDIA's driver is loaded.
    type: str
    choices: [auto, always, never]
    default: auto
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
author:
  - llamafleet contributors (@llamafleet)
"""

EXAMPLES = r"""
- name: Let the services and one person use the GPUs
  llamafleet.turboquant.gpu_access:
    users: [anna]
  become: true

- name: Take it back
  llamafleet.turboquant.gpu_access:
    state: absent
  become: true
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, in words.
  returned: always
  type: list
  elements: str
  sample: [create the group render with the number 110 of the device node, add llamafleet to render]
groups:
  description: Groups that the users are in.
  returned: always
  type: list
  elements: str
granted:
  description: What is recorded as given, by user.
  returned: always
  type: dict
"""

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _gpu_access
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gpu_access import RECORD, Step, Wish

_UVM_NODE = "/dev/nvidia-uvm"


def text_of(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def read_nodes() -> list[dict[str, object]]:
    """Return the GPUs' character devices; a plain file of that name is none."""
    nodes: list[dict[str, object]] = []
    names = [Path("/dev/kfd"), *sorted(Path("/dev/dri").glob("card[0-9]*")), *sorted(Path("/dev/dri").glob("renderD*"))]
    for path in names:
        try:
            status = path.stat()
        except OSError:
            continue
        if stat.S_ISCHR(status.st_mode):
            nodes.append({"path": str(path), "mode": stat.S_IMODE(status.st_mode), "gid": status.st_gid})
    return nodes


def packaged_uvm_rule() -> bool:
    """Say whether a rule of the driver's packages makes nvidia-uvm's nodes when its module is loaded."""
    for folder in ("/usr/lib/udev/rules.d", "/lib/udev/rules.d", "/etc/udev/rules.d"):
        for path in Path(folder).glob("*.rules"):
            if str(path) != _gpu_access.UVM_RULES:
                text = text_of(str(path)) or ""
                if "nvidia-uvm" in text or "nvidia_uvm" in text:
                    return True
    return False


def read_state(module: AnsibleModule) -> _gpu_access.State:
    local = {line.partition(":")[0] for line in (text_of("/etc/group") or "").splitlines()}
    return _gpu_access.State(
        groups={
            entry.gr_name: _gpu_access.Group(entry.gr_gid, set(entry.gr_mem), entry.gr_name in local)
            for entry in grp.getgrall()
        },
        users={entry.pw_name: entry.pw_gid for entry in pwd.getpwall()},
        nodes=read_nodes(),
        files={path: text_of(path) for path in _gpu_access.CONTENTS},
        nvidia_loaded=Path("/sys/module/nvidia").exists(),
        uvm_loaded=Path("/sys/module/nvidia_uvm").exists(),
        uvm_node=Path(_UVM_NODE).exists(),
        uvm_rule_packaged=packaged_uvm_rule(),
        nvidia_modprobe=module.get_bin_path("nvidia-modprobe") is not None,
    )


def write(path: str, content: str, mode: int) -> None:
    """Put a file in its place whole or not at all."""
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    beside.write_text(content, encoding="utf-8")
    beside.chmod(mode)
    beside.replace(target)


def perform(module: AnsibleModule, step: Step) -> None:
    if step.kind == "run":
        if step.argv[0] == "udevadm" and not Path("/run/udev/control").exists():
            return  # no udev runs here (a container), so there is none to tell
        command = [module.get_bin_path(step.argv[0], required=True), *step.argv[1:]]
        code, out, err = module.run_command(command)
        if code != 0:
            said = err.strip() or out.strip() or f"code {code}"
            module.fail_json(msg=f"could not {step.words}: {' '.join(step.argv)}: {said}")
    elif step.kind == "write":
        write(step.path, step.content, step.mode)
    elif step.kind == "remove":
        with contextlib.suppress(FileNotFoundError):
            Path(step.path).unlink()
    elif step.kind == "group":
        with Path("/etc/group").open("a", encoding="utf-8") as stream:
            stream.write(step.content + "\n")
    elif step.kind == "node":
        os.chown(step.path, -1, grp.getgrnam(step.content).gr_gid)
        Path(step.path).chmod(step.mode)
    else:
        raise ValueError(f"no step is called {step.kind}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "users": {"type": "list", "elements": "str", "default": []},
            "expected_users": {"type": "list", "elements": "str", "default": []},
            "service_user": {"type": "str", "default": "llamafleet"},
            "groups": {"type": "list", "elements": "str", "default": ["video", "render"]},
            "udev": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
            "nvidia_uvm": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
        },
        supports_check_mode=True,
    )
    given = module.params
    wish = Wish(
        users=given["users"],
        service_user=given["service_user"],
        groups=given["groups"],
        udev=given["udev"],
        nvidia_uvm=given["nvidia_uvm"],
        present=given["state"] == "present",
    )
    old_text = text_of(RECORD)
    try:
        old = _gpu_access.read_record(old_text)
    except ValueError as exc:
        module.fail_json(
            msg=f"{exc}: it is not known what this module gave to whom. Repair the file, or remove it to keep all"
        )
    plan = _gpu_access.make_plan(wish, read_state(module), old)
    strangers = [user for user in plan.missing_users if not (module.check_mode and user in given["expected_users"])]
    if strangers:
        module.fail_json(
            msg=f"users that the host does not have: {', '.join(strangers)}. Create them first (gpu_access_login_users "
            "does), or take them out of gpu_access_users. Nothing was changed"
        )

    new_text = None if plan.record.empty else plan.record.text()
    changed = bool(plan.steps) or new_text != old_text
    result: dict[str, Any] = {
        "changed": changed,
        "actions": [step.words for step in plan.steps],
        "groups": plan.groups,
        "granted": plan.record.granted,
    }
    if module._diff:
        result["diff"] = [
            {"before_header": RECORD, "after_header": RECORD, "before": old_text or "", "after": new_text or ""},
            {
                "before_header": "steps",
                "after_header": "steps",
                "before": "",
                "after": "".join(f"{a}\n" for a in result["actions"]),
            },
        ]
    if module.check_mode or not changed:
        module.exit_json(**result)

    if plan.steps:
        # Recorded before it is given: a run that is cut off leaves nothing that a later one could not take back.
        write(RECORD, old.merged(plan.record).text(), 0o644)
    for step in plan.steps:
        perform(module, step)
    tried = any("nvidia-uvm" in step.argv or "nvidia-modprobe" in step.argv for step in plan.steps)
    if tried and not Path(_UVM_NODE).exists():
        module.fail_json(
            msg=f"{_UVM_NODE} is still missing after the module was loaded, and CUDA cannot start without it: install "
            "the package that has nvidia-modprobe (nvidia-modprobe, or xorg-x11-drv-nvidia-cuda from RPM Fusion)",
            **result,
        )
    if new_text is None:
        with contextlib.suppress(FileNotFoundError):
            Path(RECORD).unlink()
    else:
        write(RECORD, new_text, 0o644)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
