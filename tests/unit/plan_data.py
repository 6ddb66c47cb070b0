# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts and models for the tests of the plan: the measured models of tests/data/oracle, without a vocabulary."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _plan

GIB = 1024**3
TOP = Path(__file__).resolve().parents[2]
MODELS = TOP / "tests/data/oracle/models"
FORK = "turboquant-69d8e4be"


def info(name: str) -> dict[str, Any]:
    """What gguf_info would say of a measured model."""
    model = json.loads(gzip.decompress((MODELS / f"{name}.json.gz").read_bytes()))
    return {
        "model": {**model, "file_bytes": sum(t[3] for t in model["tensors"]), "header_bytes": 16_000_000},
        "checks": [],
    }


class Reader:
    """Counts how often a header is read."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.checks: list[dict[str, str]] = []

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        if entry["name"].startswith("broken"):
            raise ValueError(f"{entry['name']}: not a GGUF file")
        self.read.append(entry["name"])
        return {**info(entry["name"]), "checks": self.checks}


NAMES = sorted(path.name[: -len(".json.gz")] for path in MODELS.glob("*-real.json.gz"))
FILES = {name: {"name": name, "sha256": name} for name in [*NAMES, "broken"]}


def device(name: str, gib: float, backend: str = "cuda", integrated: bool = False) -> dict[str, Any]:
    size = int(gib * GIB)
    return {"name": name, "backend": backend, "total_bytes": size, "free_bytes": size, "integrated": integrated}


def host(
    name: str, instances: list[dict[str, Any]], devices: list[dict[str, Any]], ram: int | None = 64, **more: Any
) -> _plan.Host:
    return _plan.Host(
        name, instances, FILES, devices, ram and ram * GIB, more.pop("build", FORK), more.pop("backends", None), **more
    )


def plan(*hosts: _plan.Host, reader: Any = None, **options: Any) -> dict[str, Any]:
    return _plan.plan_fleet(hosts, reader or Reader(), **options)
