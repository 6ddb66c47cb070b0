# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: kv_cache_bytes
short_description: Bytes of the K/V caches of llama-server
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description: The bytes of all K/V caches and recurrent states of one configuration, as one number.
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
  description: The bytes.
  type: int
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _builds, _memory


def kv_cache_bytes(
    model: Mapping[str, Any],
    options: Any = None,
    build: str = _builds.DEFAULT_BUILD,
    env: Any = None,
    program: str | None = None,
) -> int:
    """See DOCUMENTATION."""
    try:
        return _memory.kv_cache_bytes(model, options, str(build), env, program)
    except ValueError as e:
        raise AnsibleFilterError(f"kv_cache_bytes: {e}") from e


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"kv_cache_bytes": kv_cache_bytes}
