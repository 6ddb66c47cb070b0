#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the plan of a thousand hosts that share ten models: playbooks/plan.yml as a person runs it, without hosts.

usage: bench_plan_fleet.py [--hosts N] [--limit SECONDS]   run in a tree below ansible_collections/llamafleet/turboquant
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BUILD = "turboquant-69d8e4be"
OPEN = {"ctx_size": "auto", "cache_type_k": "auto", "cache_type_v": "auto"}
KINDS = (
    ("CUDA0", "cuda", 23.5, 62),
    ("CUDA0", "cuda", 31.3, 94),
    ("CUDA0", "cuda", 15.6, 62),
    ("ROCm0", "rocm", 31.8, 125),
    ("ROCm0", "rocm", 109, 122),
    ("Vulkan0", "vulkan", 23.9, 62),
    (None, None, 0, 62),
)


def write_cache(folder: Path) -> list[dict[str, str]]:
    """Ten models of the measured ones as headers that have been read before; returns their llama_model_files."""
    files = []
    for path in sorted((TOP / "tests/data/oracle/models").glob("*-real.json.gz"))[:10]:
        model = json.loads(gzip.decompress(path.read_bytes()))
        model["file_bytes"] = sum(tensor[3] for tensor in model["tensors"])
        model["header_bytes"] = 8_000_000
        name = path.name.removesuffix(".json.gz")
        digest = hashlib.sha256(name.encode()).hexdigest()
        text = json.dumps({"model": model, "checks": []})
        (folder / f"{digest}-{BUILD}.json.gz").write_bytes(gzip.compress(text.encode()))
        files.append({"name": f"{name}.gguf", "url": f"https://models.invalid/{name}.gguf", "sha256": digest})
    return files


def inventory(hosts: int, files: list[dict[str, str]]) -> dict[str, object]:
    """Hosts of seven kinds, each with one of the models, a part of them with a second instance of fixed size."""
    entries = {}
    for number in range(hosts):
        device, backend, gib, ram = KINDS[number % len(KINDS)]
        instances: list[dict[str, object]] = [{"name": "main", "model": files[number % len(files)]["name"], **OPEN}]
        if number % 3 == 0:
            instances.append(
                {
                    "name": "small",
                    "model": "lfm2-1.2b-real.gguf",
                    "ctx_size": 8192,
                    "cache_type_k": "f16",
                    "cache_type_v": "f16",
                }
            )
        entries[f"node{number:04d}.example.net"] = {
            "plan_ram_gib": ram,
            "plan_devices": [{"name": device, "backend": backend, "total_gib": gib}] if device else [],
            "llama_server_instances": instances,
        }
    return {"all": {"vars": {"llama_model_files": files}, "hosts": entries}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that the plan may take")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "headers").mkdir()
        files = write_cache(folder / "headers")
        (folder / "hosts.json").write_text(json.dumps(inventory(options.hosts, files)))
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "--inventory", str(folder / "hosts.json"),
            "playbooks/plan.yml",
            "--extra-vars", json.dumps({
                "plan_offline": True, "plan_header_cache": str(folder / "headers"), "plan_dir": str(folder),
            }),
        ]  # fmt: skip
        if not Path(command[0]).exists():
            command[0] = shutil.which("ansible-playbook") or command[0]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False, env={**os.environ})
        seconds = time.perf_counter() - began
        plan = folder / "plan.json"
        if not plan.exists():
            print(done.stdout + done.stderr)
            return 1
        summary = json.loads(plan.read_text())["summary"]
        size = (folder / "plan.html").stat().st_size
    print(
        f"plan of {summary['hosts']} hosts, {summary['instances']} instances, {len(files)} models: {seconds:.1f} s"
        f" (limit {options.limit:g} s), page {size / 1e6:.1f} MB; {summary['fits']} fit"
    )
    if summary["hosts"] != options.hosts or seconds > options.limit:
        print(f"the limit is {options.limit:g} s for {options.hosts} hosts")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
