# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: serving_table
short_description: Show the instances of many hosts as a table
version_added: 1.0.0
author: llamafleet contributors (@llamafleet)
description:
  - Takes the results of the module M(llamafleet.turboquant.llama_instances) by host and returns the lines of a table
    for a person, with memory predicted and measured, tokens per second and what is wrong.
options:
  _input:
    description:
      - The results by host name. A host without instances in its result is shown as failed, with the first line of
        C(msg), or in the C(state) that its result names.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what runs
  ansible.builtin.debug:
    msg: "{{ {inventory_hostname: result} | llamafleet.turboquant.serving_table }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

HEAD = ("host", "instance", "address", "model", "context", "cache K/V", "predicted", "measured", "tokens/s", "state")


def mib(value: Any) -> str:
    """A number of bytes in MiB, or a dash."""
    return "-" if value is None else f"{int(value) / (1 << 20):,.1f} MiB"


def rows_of(host: str, result: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[str]]]:
    """The cells of each instance, and what is wrong with it."""
    instances = result.get("instances")
    if instances is None:
        state = result.get("state")
        # The whole message stands where the host failed; here its beginning says which failure it is.
        why = str(result.get("msg") or "no result").splitlines()[0]
        return [((host, *["-"] * (len(HEAD) - 2), str(state or "FAILED")), [] if state else [why])]
    rows: list[tuple[tuple[str, ...], list[str]]] = []
    for entry in instances:
        gate = entry.get("gate") or {}
        figures = gate.get("figures") or {}
        problems = [str(problem) for problem in entry.get("problems") or []]
        action = str(entry.get("action", ""))
        state = "WRONG" if problems else str(entry.get("state") or action)
        if not problems and action not in ("unchanged", ""):
            state = f"{state}, {action}"
        speed = gate.get("tokens_per_second")
        rows.append(
            (
                (
                    host,
                    str(entry["name"]),
                    str(entry.get("address", "-")),
                    str(entry.get("model", "-")),
                    str(entry.get("ctx_size", "-")),
                    str(entry.get("cache_types", "-")),
                    mib(figures.get("total_predicted")),
                    mib(figures.get("total_measured")),
                    "-" if speed is None else f"{float(speed):.1f}",
                    state,
                ),
                problems,
            )
        )
    return rows


def serving_table(results: Any) -> list[str]:
    """See DOCUMENTATION."""
    if not isinstance(results, Mapping):
        raise AnsibleFilterError(f"serving_table needs results by host, a dictionary, got {type(results).__name__}")
    rows = [row for host in results for row in rows_of(str(host), results[host] or {})]
    cells = [HEAD, *[row for row, _problems in rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    for row, problems in rows:
        lines += [f"{row[0]} {row[1]}: {problem}" for problem in problems]
    return lines


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by its name."""
        return {"serving_table": serving_table}
