#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_checks
short_description: Judge a host before anything on it changes
version_added: 1.0.0
description:
  - Looks at everything that is known to stop or to hurt a deployment on this host, and reports all of it at once, each
    finding with its figures, what would be right, and what it rests on.
  - Fails when there is a refusal, and with O(strict) also when there is a warning. Changes nothing, and writes nothing.
  - Looked at are the release of Fedora, systemd, the architecture, image-based variants, free disk space, memory
    against
    the plan, the NVIDIA driver against CUDA, Secure Boot against unsigned modules, builds of llama.cpp without known
    fixes, and what M(llamafleet.turboquant.gpu_info) calls a problem.
options:
  root:
    description: Folder to read in place of V(/), as in M(llamafleet.turboquant.gpu_info).
    type: path
    default: /
  strict:
    description: Whether warnings count as refusals.
    type: bool
    default: false
  tested_releases:
    description: Releases of Fedora that the collection is tested on. A newer one is a warning.
    type: list
    elements: int
    default: [43, 44]
  ended_releases:
    description: Releases of Fedora that are past their end and known all the same. They are a warning; older ones are
      refused.
    type: list
    elements: int
    default: [42]
  architectures:
    description: Architectures that are supported.
    type: list
    elements: str
    default: [x86_64, aarch64]
  backends:
    description: Backends that the host builds or runs.
    type: list
    elements: str
    choices: [cpu, cuda, rocm, vulkan]
    default: [cpu]
  cuda_version:
    description: CUDA that the host's programs are built with, such as V(13.2). Empty where it is not known yet.
    type: str
    default: ""
  builds:
    description:
      - Builds of llama.cpp in use, as the planner names them (V(turboquant-69d8e4be), V(upstream-b11434)).
    type: list
    elements: str
    default: []
  gpu_targets:
    description:
      - The gfx names that a build for ROCm names, such as V(gfx1151); some builds are bad for some GPUs only. Empty for
        those of the host's GPUs.
    type: list
    elements: str
    default: []
  allow_known_bad:
    description: Whether a build that is known to be bad is a warning and not a refusal.
    type: bool
    default: false
  disk:
    description: What is to be written. Needs on the same file system are added up.
    type: list
    elements: dict
    default: []
    suboptions:
      purpose:
        description: What the space is for, in the words of the report.
        type: str
        required: true
      path:
        description: Folder that will hold it. It need not be there yet.
        type: path
        required: true
      bytes:
        description: Space in bytes.
        type: int
        required: true
      unless_exists:
        description: Path whose existence says that the space is taken already.
        type: path
  model_dir:
    description: Folder of the model files.
    type: path
    default: /var/lib/llamafleet/models
  model_files:
    description: Model files that the host is to hold, with their sizes. A file that is there already takes no more
      space.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the file below O(model_dir).
        type: str
        required: true
      bytes:
        description: Its size.
        type: int
        required: true
  plan:
    description:
      - Memory in bytes that the instances of this host need, by device (V(CUDA0), V(ROCm0), V(Vulkan0), V(host)), as
        C(memory_budget) predicts it. Empty leaves the comparison out.
    type: dict
    default: {}
  plan_findings:
    description: What M(llamafleet.turboquant.plan_fleet) says against the instances of this host.
    type: list
    elements: dict
    default: []
    suboptions:
      severity:
        description: V(refusal) for what does not fit or would not start, V(warning) for what cannot be planned.
        type: str
        choices: [refusal, warning]
        required: true
      text:
        description: The sentence.
        type: str
        required: true
  gtt_bytes:
    description:
      - RAM in bytes that the GPU of an APU may map after the role P(llamafleet.turboquant.gtt_memory#role) and a
        reboot. The plan is compared with it in place of the present limit. V(0) where that stays.
    type: int
    default: 0
  timeout:
    description: Seconds that vendors' programs may take together, as in M(llamafleet.turboquant.gpu_info).
    type: float
    default: 1.5
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
author:
  - llamafleet contributors (@llamafleet)
seealso:
  - module: llamafleet.turboquant.gpu_info
"""

EXAMPLES = r"""
- name: Refuse a host on which the deployment cannot work
  llamafleet.turboquant.preflight_checks:
    backends: [cuda]
    cuda_version: "13.2"
    disk:
      - {purpose: the build, path: /var/lib/llamafleet/build, bytes: 4294967296, unless_exists: /opt/llamafleet/current}
    model_files:
      - {name: gemma-4-26B-A4B-it-Q4_K_M.gguf, bytes: 16893083648}
    plan:
      CUDA0: 22548578304
      host: 1073741824
"""

RETURN = r"""
findings:
  description: All findings, refusals first.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Name of the kind of finding.
      type: str
    severity:
      description: V(refusal), V(warning) or V(note).
      type: str
    message:
      description: The finding in words.
      type: str
    source:
      description: What it rests on.
      type: str
report:
  description: The findings as a text.
  returned: always
  type: str
hardware:
  description: What M(llamafleet.turboquant.gpu_info) returns, so that no later task need ask again.
  returned: always
  type: dict
ansible_facts:
  description: The same hardware, as a fact, with the facts of the platform that the other roles need.
  returned: when the host is not refused
  type: dict
  contains:
    llamafleet_hardware:
      description: What M(llamafleet.turboquant.gpu_info) returns.
      type: dict
    architecture:
      description: Of the processor, as M(ansible.builtin.setup) calls it; so no later task need gather it.
      type: str
    distribution:
      description: As M(ansible.builtin.setup) calls it.
      type: str
    distribution_version:
      description: As M(ansible.builtin.setup) calls it.
      type: str
    distribution_major_version:
      description: As M(ansible.builtin.setup) calls it.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _preflight
from ansible_collections.llamafleet.turboquant.plugins.module_utils._hardware import Tree, read_hardware


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "strict": {"type": "bool", "default": False},
            "tested_releases": {"type": "list", "elements": "int", "default": [43, 44]},
            "ended_releases": {"type": "list", "elements": "int", "default": [42]},
            "architectures": {"type": "list", "elements": "str", "default": ["x86_64", "aarch64"]},
            "backends": {
                "type": "list",
                "elements": "str",
                "default": ["cpu"],
                "choices": ["cpu", "cuda", "rocm", "vulkan"],
            },
            "cuda_version": {"type": "str", "default": ""},
            "builds": {"type": "list", "elements": "str", "default": []},
            "gpu_targets": {"type": "list", "elements": "str", "default": []},
            "allow_known_bad": {"type": "bool", "default": False},
            "disk": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "purpose": {"type": "str", "required": True},
                    "path": {"type": "path", "required": True},
                    "bytes": {"type": "int", "required": True},
                    "unless_exists": {"type": "path"},
                },
            },
            "model_dir": {"type": "path", "default": "/var/lib/llamafleet/models"},
            "model_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "bytes": {"type": "int", "required": True}},
            },
            "plan": {"type": "dict", "default": {}},
            "plan_findings": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "severity": {"type": "str", "required": True, "choices": ["refusal", "warning"]},
                    "text": {"type": "str", "required": True},
                },
            },
            "gtt_bytes": {"type": "int", "default": 0},
            "timeout": {"type": "float", "default": 1.5},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        plan = {str(name): int(amount) for name, amount in given["plan"].items()}
    except (TypeError, ValueError):
        module.fail_json(msg=f"plan is {given['plan']!r}, where each device needs a number of bytes")
    if not given["tested_releases"]:
        module.fail_json(msg="tested_releases is empty: at least one release must be named, such as 44")

    root = given["root"]
    models = [
        {
            "purpose": f"the model {entry['name']}",
            "path": given["model_dir"],
            "bytes": entry["bytes"],
            "unless_exists": f"{given['model_dir']}/{entry['name']}",
        }
        for entry in given["model_files"]
    ]
    hardware = read_hardware(root, timeout=given["timeout"], cuda_version=given["cuda_version"] or None)
    wishes = _preflight.Wishes(
        tested_releases=given["tested_releases"],
        ended_releases=given["ended_releases"],
        architectures=given["architectures"],
        backends=given["backends"],
        cuda_version=given["cuda_version"],
        builds=given["builds"],
        gpu_targets=given["gpu_targets"],
        allow_known_bad=given["allow_known_bad"],
        disk=[*given["disk"], *models],
        plan=plan,
        plan_findings=given["plan_findings"],
        gtt_bytes=given["gtt_bytes"],
    )
    findings = _preflight.judge(Tree(root), hardware, wishes)
    text = _preflight.report(findings, given["strict"])
    result = {"changed": False, "findings": findings, "report": text, "hardware": hardware}
    if _preflight.refused(findings, given["strict"]):
        module.fail_json(msg=text, **result)
    for finding in findings:
        if finding["severity"] == _preflight.WARNING:
            module.warn(f"{finding['message']} [{finding['source']}]")
    facts = {"llamafleet_hardware": hardware, **_preflight.platform_facts(Tree(root))}
    module.exit_json(msg=text, ansible_facts=facts, **result)


if __name__ == "__main__":
    main()
