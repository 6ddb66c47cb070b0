# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: memory_budget
short_description: Predict the memory of llama-server and whether it starts
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description: Predict the memory of llama-server and whether it starts.
options:
  _input:
    description: The C(model) that the module M(llamafleet.turboquant.gguf_info) returns.
    type: dict
    required: true
"""

EXAMPLES = r"""
"""

RETURN = r"""
_value:
  description: The budget.
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _builds, _memory


def memory_budget(
    model: Mapping[str, Any],
    devices: Any = (),
    options: Any = None,
    build: str = _builds.DEFAULT_BUILD,
    env: Any = None,
    program: str | None = None,
    fa_all_quants: bool | None = None,
) -> dict[str, Any]:
    """See DOCUMENTATION."""
    try:
        return _memory.memory_budget(model, devices, options, str(build), env, program, fa_all_quants)
    except ValueError as e:
        raise AnsibleFilterError(f"memory_budget: {e}") from e


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"memory_budget": memory_budget}
