# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a host's instances: what each will allocate, and what `auto` means here.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils import (
    _builds,
    _fit,
    _gguf,
    _gguf_source,
    _gtt,
    _hardware,
    _memory,
    _plan,
)
from ansible_collections.llamafleet.turboquant.plugins.module_utils._cache_types import is_turbo

MIB = 1 << 20


class PlanError(Exception):
    """An instance cannot run as it is asked for; the text says why and what would work."""


def build_of(release: Path) -> str | None:
    """The build of a release by the planner's names; None for one that the planner has no rules for."""
    try:
        manifest = json.loads((release / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    words = json.dumps([manifest.get("commit"), manifest.get("source"), manifest.get("version")])
    for name in _builds.BUILDS:
        mark = name.partition("-")[2]
        if mark in words or (mark.startswith("b") and mark[1:].isdigit() and mark[1:] in words):
            return name
    return None


def has_all_quants(release: Path) -> bool:
    """Whether a release has the attention kernels of GGML_CUDA_FA_ALL_QUANTS."""
    try:
        manifest = json.loads((release / "manifest.json").read_text(encoding="utf-8"))
        return str(manifest["options"].get("GGML_CUDA_FA_ALL_QUANTS", "OFF")) == "ON"
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def options_of(item: dict[str, Any]) -> dict[str, Any]:
    """The instance in the words of memory_budget, by the same rules as in the plan of the fleet."""
    devices = [{"name": name} for name in item["devices"] if name != "none"]
    try:
        options = _plan.instance_options(item, devices)
    except ValueError as exc:
        raise PlanError(f"instance {item['name']!r}: {exc}") from exc
    mmproj = item.get("mmproj_path")
    if mmproj and Path(mmproj).is_file():
        options["mmproj_bytes"] = Path(mmproj).stat().st_size
    return {key: value for key, value in options.items() if value != "auto" or key == "flash_attn"}


def read_header(path: str, build: str) -> dict[str, Any]:
    """The model's header; what the program would not serve is refused with the words of gguf_info."""
    try:
        seen = _gguf_source.read_model(path=path, build=build)
    except _gguf.GgufError as exc:
        raise PlanError(str(exc)) from exc
    wrong = [check["message"] for check in seen["checks"] if check["level"] == "error"]
    if wrong:
        raise PlanError(f"{path}: {'; '.join(wrong)}")
    model: dict[str, Any] = seen["model"]
    return model


def refuse_endless(path: str) -> None:
    """Refuse a model of which no answer would end; for builds whose other rules are not known."""
    try:
        seen = _gguf_source.read_model(path=path)
    except _gguf.GgufError:
        # Such a build may read what the known ones do not.
        return
    wrong = [check["message"] for check in seen["checks"] if check["code"] in ("eog_missing", "eog_turn_missing")]
    if wrong:
        raise PlanError(f"{path}: {'; '.join(wrong)}")


def host_devices(
    item: dict[str, Any], listed: list[dict[str, Any]] | None, gtt_bytes: int = 0
) -> list[dict[str, Any]] | None:
    """The instance's devices with their memory in bytes; None where that of one of them cannot be known.

    ``gtt_bytes`` is the limit with which a GPU that shares the RAM is taken; 0 for the one that it has now.
    """
    names = [name for name in item["devices"] if name != "none"]
    if not names:
        return []
    if listed is None:
        try:
            hardware = _hardware.read_hardware()
            if gtt_bytes:
                hardware = _gtt.with_limit(hardware, gtt_bytes)
            listed = _hardware.planning_devices(hardware, [item["backend"]])
        except (KeyError, ValueError):
            return None
    known = {str(device["name"]): _in_bytes(device) for device in listed}
    if not all(name in known for name in names):
        return None
    return [known[name] for name in names]


def _in_bytes(device: dict[str, Any]) -> dict[str, Any]:
    """A device of the inventory with its memory in bytes; all of it is free unless it says otherwise."""
    result = dict(device)
    for key in ("total", "free"):
        if result.get(f"{key}_bytes") is None and result.get(f"{key}_gib") is not None:
            result[f"{key}_bytes"] = int(float(result[f"{key}_gib"]) * (1 << 30))
        result.pop(f"{key}_gib", None)
    if result.get("total_bytes") is None:
        raise PlanError(f"device {result.get('name')!r} of plan_devices needs total_bytes or total_gib")
    result["total_bytes"] = int(result["total_bytes"])
    free = result.get("free_bytes")
    result["free_bytes"] = result["total_bytes"] if free is None else int(free)
    return result


def _total(part: dict[str, int]) -> int:
    """What the log accounts for: memory outside llama.cpp's own buffers, such as the CUDA context, is not in it."""
    return part["total"] - part["other"]


def ask_for_flash_attention(item: dict[str, Any]) -> None:
    """Ask for it where the chosen caches exist only with it: left to the server it may be off, and that is a crash."""
    if item["flash_attn"] == "auto" and (
        is_turbo(item["cache_type_k"]) or item["cache_type_v"] not in ("f16", "bf16", "f32")
    ):
        item["flash_attn"] = "on"


class Planner:
    """Plans instance after instance; what one takes is not there for the next."""

    def __init__(
        self,
        build: str,
        devices: list[dict[str, Any]] | None,
        used: dict[str, dict[str, int]],
        gtt_bytes: int = 0,
    ) -> None:
        # used: what the instances that run now hold on each device, by their names. It comes back when they are
        # planned again, so that a converged host is not full of itself.
        self.build = build
        self.listed = devices
        self.used = used
        # gtt_bytes: what a GPU that shares the RAM may map after a reboot that is still to come, 0 where none is.
        self.gtt_bytes = gtt_bytes
        self.taken: dict[str, int] = {}
        # What those instances take that need not wait for that reboot.
        self.starting: dict[str, int] = {}

    def _devices(self, item: dict[str, Any]) -> list[dict[str, Any]] | None:
        devices = host_devices(item, self.listed, self.gtt_bytes)
        if devices is None:
            return None
        for device in devices:
            own = sum(held.get(device["name"], 0) for held in self.used.values())
            free = min(device["total_bytes"], device["free_bytes"] + own)
            device["free_bytes"] = max(0, free - self.taken.get(device["name"], 0))
        return devices

    def choose(self, items: list[dict[str, Any]], ram_bytes: int | None) -> None:
        """Fill in what is ``auto`` as the plan of the fleet does: instances that share a device share what is left.

        ``ram_bytes`` is all that the host has. What finds no place stays ``auto``, and plan() says why.
        """
        known: dict[str, dict[str, Any]] = {}
        instances = []
        for item in items:
            devices = self._devices(item)
            if devices is not None:
                known.update({device["name"]: device for device in devices})
                instances.append(item)
        paths = {item["model"]: item["model_path"] for item in instances}
        paths.update({item["mmproj"]: item["mmproj_path"] for item in instances if item.get("mmproj_path")})
        host = _plan.Host(
            name="",
            instances=instances,
            files={name: {"name": name, "path": path} for name, path in paths.items()},
            devices=list(known.values()),
            ram_bytes=ram_bytes,
            build=self.build,
            backends=None,
        )
        rows = _plan.plan_host(host, lambda entry: {"model": read_header(entry["path"], self.build), "checks": []})
        for item, row in zip(instances, rows["instances"]):
            if row["verdict"] == _plan.FITS:
                item.update({key: row["options"][key] for key in row["auto"]})
                ask_for_flash_attention(item)

    def plan(self, item: dict[str, Any], ram_bytes: int | None) -> dict[str, Any] | None:
        """Fill in `auto`, refuse what does not run, and return the prediction; None where none can be made."""
        where = f"instance {item['name']!r}: "
        automatic = [key for key in ("ctx_size", "cache_type_k", "cache_type_v") if item[key] == "auto"]
        devices = self._devices(item)
        if devices is None:
            if automatic:
                names = ", ".join(item["devices"])
                raise PlanError(
                    f"{where}{automatic[0]} is auto, but the memory of {names} is not known on this host; "
                    "give numbers, or list plan_devices"
                )
            # The file is judged although its memory is not.
            read_header(item["model_path"], self.build)
            return None
        header = read_header(item["model_path"], self.build)
        environment = dict(item["environment"])
        options = options_of(item)
        left = None if ram_bytes is None else max(0, ram_bytes - self.taken.get("host", 0))
        try:
            if automatic:
                wanted = item.get("max_ctx")
                chosen = _fit.fit_context(
                    header, devices, options, self.build, environment, max_ctx=wanted, ram_bytes=left
                )
                for key in automatic:
                    item[key] = chosen["options"][key]
                ask_for_flash_attention(item)
                budget = chosen["budget"]
            else:
                budget = _memory.memory_budget(header, devices, options, self.build, environment)
        except ValueError as exc:
            raise PlanError(f"{where}{exc}") from exc
        if not budget["accepted"]:
            raise PlanError(f"{where}{budget['reason']}{self._nearest(header, devices, options, environment, left)}")
        if item["memory_max"] == "auto":
            # A draft model is not planned: its weights, and caches and buffers that are hardly larger.
            # In check mode it may not be there yet.
            draft = Path((item.get("draft") or {}).get("model_path") or "/nowhere")
            item["memory_max"] = memory_max(budget, 2 * draft.stat().st_size if draft.exists() else 0)
        else:
            self._check_memory_max(where, item, budget)
        for name, part in budget["devices"].items():
            self.taken[name] = self.taken.get(name, 0) + part["total"]
        return {
            # As the log's lines of the caches have it: they leave out the rotation matrices of turbo types and the
            # padding of rows (llama-kv-cache.cpp:456-462), which are in the buffers and so in the total.
            "kv_bytes": sum(
                cache["k_bytes"] + cache["v_bytes"] for cache in budget["caches"] if cache["kind"] != "recurrent"
            ),
            "total_bytes": sum(_total(part) for part in budget["devices"].values()),
            "devices": {name: part["total"] for name, part in budget["devices"].items()},
            "build": self.build,
            "warnings": budget["warnings"],
        }

    def waits(self, item: dict[str, Any], predicted: dict[str, Any]) -> str:
        """Why a planned instance has to wait for the reboot that brings the new limit; empty where it need not."""
        if not self.gtt_bytes or self.listed is not None:
            return ""
        room = {}
        for device in host_devices(item, None) or []:
            own = sum(held.get(device["name"], 0) for held in self.used.values())
            free = min(device["total_bytes"], device["free_bytes"] + own) - self.starting.get(device["name"], 0)
            need = predicted["devices"].get(device["name"], 0)
            if need > free:
                has, will = _gtt.human_gib(max(0, free)), _gtt.human_gib(self.gtt_bytes)
                return (
                    f"instance {item['name']!r} is held back: it needs {_gtt.human_gib(need)} of {device['name']}, and"
                    f" {has} are there for it until the GPU may map {will}, after a reboot: run playbooks/reboot.yml,"
                    " then site.yml again"
                )
            room[device["name"]] = need
        for name, need in room.items():
            self.starting[name] = self.starting.get(name, 0) + need
        return ""

    def _nearest(
        self,
        header: dict[str, Any],
        devices: list[dict[str, Any]],
        options: dict[str, Any],
        environment: dict[str, str],
        ram_bytes: int | None,
    ) -> str:
        """The nearest choice that works: the same caches with less context, else other caches too."""
        open_options = {key: value for key, value in options.items() if key != "ctx_size"}
        wider = {key: value for key, value in open_options.items() if not key.startswith("cache_type")}
        asked = options.get("ctx_size")
        for free in (open_options, wider):
            try:
                chosen = _fit.fit_context(
                    header, devices, free, self.build, environment, min_ctx=256, max_ctx=asked, ram_bytes=ram_bytes
                )["options"]
            except ValueError:
                continue
            return (
                f"; the nearest that works here is ctx_size {chosen['ctx_size']} with "
                f"{chosen['cache_type_k']}/{chosen['cache_type_v']}"
            )
        return "; nothing smaller works here either"

    @staticmethod
    def _check_memory_max(where: str, item: dict[str, Any], budget: dict[str, Any]) -> None:
        limit = memory_limit(item["memory_max"])
        if limit is None:
            return
        part = budget["devices"].get("host", {})
        held = sum(part.get(key, 0) for key in ("kv", "recurrent", "compute", "output", "other"))
        if item["load_mode"] in ("none", "mlock", "mmap+mlock", "dio"):
            # Pages of a mapped file can be dropped; these cannot.
            held += part.get("weights", 0)
        if held > limit:
            raise PlanError(
                f"{where}memory_max {item['memory_max']} is less than the {held / MIB:.0f} MiB of the host's memory "
                "that the plan says the server holds; it would be killed while it loads"
            )


# Of MemoryMax beyond what the plan predicts: a part of that, or this where it is more (the vocabulary, requests, the
# program and its libraries); for each GPU what its driver keeps in the host's memory; and to what it is rounded up, so
# that a few MiB more or less are the same limit.
MEMORY_PART, MEMORY_LEAST, MEMORY_DRIVER, MEMORY_STEP = 4, 2 << 30, 1 << 30, 256 << 20


def memory_max(budget: dict[str, Any], more: int = 0) -> str:
    """MemoryMax for an instance: more than it can need by its plan, and an end for one that grows without one.

    All that is predicted counts, on whichever device. The pages of the model's file count for the service while they
    are cached; they can be dropped, but then the next start reads the disk. What an integrated GPU maps, or unified
    memory holds, is the host's memory; kernels differ in whether they count it. more: what the budget does not know.
    """
    predicted = more + sum(part["total"] for part in budget["devices"].values())
    gpus = sum(1 for name, part in budget["devices"].items() if name != _memory.HOST and part["total"])
    need = predicted + max(predicted // MEMORY_PART, MEMORY_LEAST) + gpus * MEMORY_DRIVER
    return f"{-(-need // MEMORY_STEP) * (MEMORY_STEP // MIB)}M"


def memory_limit(text: str) -> int | None:
    """MemoryMax in bytes; None where there is no limit or it depends on the host."""
    if not text or text in ("infinity", "auto") or text.endswith("%"):
        return None
    shift = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1], 0)
    return int(text[:-1] if shift else text) << shift


__all__ = [
    "PlanError",
    "Planner",
    "build_of",
    "has_all_quants",
    "host_devices",
    "memory_limit",
    "memory_max",
    "options_of",
    "read_header",
    "refuse_endless",
]
