# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter conda_lock_problems."""

from __future__ import annotations

DOCUMENTATION = r"""
name: conda_lock_problems
short_description: Why a conda lock is not one of a planned toolchain
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - Takes the text of an explicit lock and C(conda) of a plan (P(llamafleet.turboquant.toolchain_plan#filter)).
    Returns what is wrong with it as sentences, an empty list where the toolchain can be installed from it.
  - Each package address needs a digest that micromamba looks at, all packages must be for the machine of the plan, none
    may be there twice, and all that the plan names must be there, in the versions that the plan names.
positional: conda
options:
  _input:
    description: The text of the lock.
    type: str
    required: true
  conda:
    description: C(conda) of the plan, with its platform and specs.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show why a lock is not one of this host's toolchain
  ansible.builtin.debug:
    msg: "{{ lock | llamafleet.turboquant.conda_lock_problems(toolchain_result.conda) }}"
  vars:
    lock: "{{ lookup('ansible.builtin.file', 'cuda.lock') }}"
# ["cuda-version is 12.9, the plan of this host has 13.0"]
"""

RETURN = r"""
_value:
  description: What is wrong.
  type: list
  elements: str
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _conda_lock


def conda_lock_problems(lock: Any, conda: Any) -> list[str]:
    """Return why a lock is not one of the toolchain of a plan."""
    if not isinstance(lock, str):
        raise AnsibleFilterError(f"conda_lock_problems: the lock is text, got {type(lock).__name__}")
    if not isinstance(conda, Mapping) or not {"platform", "specs"} <= set(conda):
        raise AnsibleFilterError(
            f"conda_lock_problems: conda has platform and specs, as a plan has them, got {conda!r}"
        )
    return _conda_lock.conda_lock_problems(lock.splitlines(), conda)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"conda_lock_problems": conda_lock_problems}
