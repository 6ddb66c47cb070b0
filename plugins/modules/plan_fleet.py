# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin plan_fleet, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan_fleet
short_description: Predict the memory of all instances of a fleet and whether they fit
version_added: 1.0.0
author:
  - llamafleet contributors (@llamafleet)
description:
  - For each host and instance, says what memory it needs on which device, chooses what the inventory leaves to C(auto),
    and says whether it fits, would be refused by the program, or cannot be planned.
  - Prints a table, and writes C(plan.html) (one self-contained page) and C(plan.json).
  - Runs on the controller, once for all hosts, and fails when an instance does not fit, is refused or is not known.
    It reads the variables of the hosts and what C(playbooks/plan.yml) has registered of their hardware. No host is
    connected to.
  - Hosts that are alike are planned once, and a model's header is read once, then kept in O(header_cache). A thousand
    hosts that share ten models take a few seconds.
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
attributes:
  check_mode:
    support: full
    details:
      - Plans and fails as otherwise, but writes no plan. Headers are kept.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - The files hold no times, so the same inventory and hardware give the same files.
options:
  hosts:
    description: The hosts to plan. Those without C(llama_server_instances) are left out.
    type: list
    elements: str
    required: true
  offline:
    description:
      - Plan with the memory that the inventory declares, C(plan_devices) and C(plan_ram_gib), instead of with what the
        hosts reported.
    type: bool
    default: false
  header_cache:
    description:
      - Folder of the headers that have been read. They are found again by the sha256 that C(llama_model_files)
        declares, else by address, or by path, size and time. With all headers in it no network is needed.
    type: path
    default: ~/.cache/llamafleet/headers
  refresh_headers:
    description: Read the headers again, for models whose entry has no sha256 and whose address does not name a commit.
    type: bool
    default: false
  html:
    description: Where to write the page; not written when left out.
    type: path
  json:
    description: Where to write the plan as data; not written when left out.
    type: path
  refuse:
    description:
      - Whether the task fails when an instance does not fit, is refused or is not known. Without, a role judges each
        host by RV(hosts), as C(site.yml) does.
    type: bool
    default: true
  timeout:
    description: Seconds without an answer after which a server of model files is given up.
    type: int
    default: 30
seealso:
  - module: llamafleet.turboquant.gguf_info
  - module: llamafleet.turboquant.gpu_info
  - plugin: llamafleet.turboquant.memory_budget
    plugin_type: filter
  - plugin: llamafleet.turboquant.fit_context
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Plan all hosts of the play with what their inventory declares
  llamafleet.turboquant.plan_fleet:
    hosts: "{{ ansible_play_hosts_all }}"
    offline: true
    html: plan.html
    json: plan.json
  run_once: true
"""

RETURN = r"""
summary:
  description: How many hosts and instances there are, and how many instances have which verdict.
  returned: when there was something to plan
  type: dict
  sample: {hosts: 12, instances: 12, fits: 11, unknown: 0, does_not_fit: 1, refused: 0, warnings: 3,
           hosts_not_fitting: 1}
hosts:
  description: For each host with instances what other roles take from the plan.
  returned: always
  type: dict
  contains:
    verdict:
      description: The worst verdict of its instances.
      type: str
    build:
      description: The planner's name of the host's build.
      type: str
    memory:
      description: What the started instances need, in bytes by device, C(host) for the RAM.
      type: dict
    gtt_plan_bytes:
      description: What they need of a GPU that shares the RAM, in bytes.
      type: int
    gtt_bytes:
      description: Limit that the role gtt_memory will set, in bytes; 0 where it sets none.
      type: int
    findings:
      description: What does not fit, is refused (C(severity) V(refusal)) or is not known (V(warning)), in words.
      type: list
      elements: dict
failures:
  description: A sentence for each instance that does not fit, is refused or is not known; the first twenty.
  returned: when there was something to plan
  type: list
  elements: str
failure_count:
  description: How many there are.
  returned: when there was something to plan
  type: int
headers:
  description: How many headers were read now, and how many were kept from before.
  returned: when there was something to plan
  type: dict
  sample: {read: 1, from_cache: 9}
"""
