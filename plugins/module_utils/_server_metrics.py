# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection knows of the instances, as text for node_exporter's textfile collector.

The format is Prometheus' text exposition format 0.0.4. Sizes are bytes and times seconds, as Prometheus names them. The
label is called name, because instance is what Prometheus calls the scraped address.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FILE = "llamafleet.prom"
# Name, help. All are gauges: what was measured at the last gate.
_FAMILIES = (
    ("llamafleet_instance_info", "Release, model and address of an instance; always 1."),
    ("llamafleet_gate_timestamp_seconds", "When the instance last passed the gate."),
    ("llamafleet_gate_tokens_per_second", "Rate of decoding at the last gate."),
    ("llamafleet_memory_predicted_bytes", "Memory that the plan predicts for each device, the backend's own included."),
    ("llamafleet_buffers_predicted_bytes", "All buffers that the plan predicts for the server's log."),
    ("llamafleet_buffers_measured_bytes", "All buffers in the server's log at the last gate."),
    ("llamafleet_kv_predicted_bytes", "KV cache that the plan predicts."),
    ("llamafleet_kv_measured_bytes", "KV cache in the server's log at the last gate."),
)


def escaped(value: str) -> str:
    """A label's value as the format writes it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def sample(family: str, labels: dict[str, str], value: float) -> str:
    words = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
    return f"{family}{{{words}}} {value!r}" if isinstance(value, int) else f"{family}{{{words}}} {value:.6g}"


def _samples(name: str, row: dict[str, Any]) -> Iterable[tuple[str, str]]:
    own = {"name": name}
    info = {**own, "release": row["release"], "model": row["model"], "address": row["address"]}
    yield "llamafleet_instance_info", sample("llamafleet_instance_info", info, 1)
    state = row["state"]
    gate = state.get("gate") or {}
    figures = gate.get("figures") or {}
    for device, size in sorted(((gate.get("predicted") or {}).get("devices") or {}).items()):
        family = "llamafleet_memory_predicted_bytes"
        yield family, sample(family, {**own, "device": device}, int(size))
    for family, value in (
        ("llamafleet_gate_timestamp_seconds", state.get("gated_at")),
        ("llamafleet_gate_tokens_per_second", gate.get("tokens_per_second")),
        ("llamafleet_buffers_predicted_bytes", figures.get("total_predicted")),
        ("llamafleet_buffers_measured_bytes", figures.get("total_measured")),
        ("llamafleet_kv_predicted_bytes", figures.get("kv_predicted")),
        ("llamafleet_kv_measured_bytes", figures.get("kv_measured")),
    ):
        if value is not None:
            yield family, sample(family, own, value)


def textfile(rows: dict[str, dict[str, Any]]) -> str:
    """The whole file; rows has release, model, address and the recorded state of each instance by its name."""
    found: dict[str, list[str]] = {}
    for name, row in sorted(rows.items()):
        for family, line in _samples(name, row):
            found.setdefault(family, []).append(line)
    lines = []
    for family, text in _FAMILIES:
        if family in found:
            lines += [f"# HELP {family} {text}", f"# TYPE {family} gauge", *found[family]]
    return "".join(f"{line}\n" for line in lines)


__all__ = ["FILE", "escaped", "sample", "textfile"]
