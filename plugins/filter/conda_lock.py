# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter conda_lock."""

from __future__ import annotations

DOCUMENTATION = r"""
name: conda_lock
short_description: The lock of a planned conda toolchain, from what micromamba found
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - Takes what micromamba printed when it was called with C(conda.solve_arguments) of a plan
    (P(llamafleet.turboquant.toolchain_plan#filter)), and returns the text of an explicit lock, each package with its
    address and its sha256.
  - It fails where micromamba found no packages, in its own words, and where a package has no sha256, is of another
    channel or for another machine than the plan's, or is not what the plan names.
  - The same answer makes the same text.
positional: conda
options:
  _input:
    description: What micromamba printed.
    type: str
    required: true
  conda:
    description: C(conda) of the plan, with its channel, platform and specs.
    type: dict
    required: true
  errors:
    description: What micromamba wrote to its standard error, for the message where it failed.
    type: str
    default: ""
seealso:
  - plugin: llamafleet.turboquant.conda_lock_problems
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Solve without downloading
  ansible.builtin.command:
    argv: "{{ ['micromamba'] + plan.conda.solve_arguments + ['--prefix', '/tmp/nowhere'] }}"
  environment: "{{ plan.conda.solve_environment }}"
  register: solved
  changed_when: false
  failed_when: solved.stdout | length == 0

- name: Write the lock
  ansible.builtin.copy:
    content: "{{ solved.stdout | llamafleet.turboquant.conda_lock(plan.conda, errors=solved.stderr) }}"
    dest: "{{ inventory_dir }}/{{ plan.conda.lock_name }}"
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The text of the lock.
  type: str
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _conda_lock


def conda_lock(answer: Any, conda: Any, errors: Any = "") -> str:
    """Return the lock that an answer of micromamba describes."""
    if not isinstance(answer, str) or not isinstance(errors, str):
        wrong = answer if not isinstance(answer, str) else errors
        raise AnsibleFilterError(f"conda_lock: what micromamba said is text, got {type(wrong).__name__}")
    if not isinstance(conda, Mapping) or not {"channel", "platform", "specs"} <= set(conda):
        raise AnsibleFilterError(
            f"conda_lock: conda has channel, platform and specs, as a plan has them, got {conda!r}"
        )
    try:
        return _conda_lock.lock_of(answer, conda, errors)
    except ValueError as error:
        raise AnsibleFilterError(f"conda_lock: {error}") from error


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"conda_lock": conda_lock}
