# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans a fleet: for each host and instance what it needs, what is there, and the verdict. Private to the collection.

Everything here is a function of its arguments. Hosts that have the same instances, models, devices and memory are
planned once, so that a fleet of a thousand hosts costs about as much as its kinds of hosts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _builds, _fit, _memory

GIB = 1024**3
MIB = 1024**2

FITS, SHORT, REFUSED, UNKNOWN = "fits", "does not fit", "refused", "unknown"
# From good to bad: a host is as good as the worst of its instances.
VERDICTS = (FITS, UNKNOWN, SHORT, REFUSED)

# What llama_server gives an instance that does not say otherwise (its argument specification says the same).
DEFAULTS: dict[str, Any] = {
    "parallel": 1,
    "cache_ram_mib": 0,
    "ctx_size": "auto",
    "cache_type_k": "f16",
    "cache_type_v": "f16",
}
# How the words of a command line name the planner's options: common/arg.cpp at the fork's commit.
# A value of None takes the next word; another value is what the word stands for.
ARGUMENTS: dict[str, tuple[str, Any]] = {
    "-b": ("batch_size", None),
    "--batch-size": ("batch_size", None),
    "-ub": ("ubatch_size", None),
    "--ubatch-size": ("ubatch_size", None),
    "-c": ("ctx_size", None),
    "--ctx-size": ("ctx_size", None),
    "-np": ("parallel", None),
    "--parallel": ("parallel", None),
    "-kvu": ("kv_unified", True),
    "--kv-unified": ("kv_unified", True),
    "-no-kvu": ("kv_unified", False),
    "--no-kv-unified": ("kv_unified", False),
    "-ctk": ("cache_type_k", None),
    "--cache-type-k": ("cache_type_k", None),
    "-ctv": ("cache_type_v", None),
    "--cache-type-v": ("cache_type_v", None),
    "-fa": ("flash_attn", None),
    "--flash-attn": ("flash_attn", None),
    "--swa-full": ("swa_full", True),
    "-ngl": ("n_gpu_layers", None),
    "--gpu-layers": ("n_gpu_layers", None),
    "--n-gpu-layers": ("n_gpu_layers", None),
    "-ncmoe": ("n_cpu_moe", None),
    "--n-cpu-moe": ("n_cpu_moe", None),
    "-cmoe": ("cpu_moe", True),
    "--cpu-moe": ("cpu_moe", True),
    "-ot": ("override_tensor", None),
    "--override-tensor": ("override_tensor", None),
    "-ts": ("tensor_split", None),
    "--tensor-split": ("tensor_split", None),
    "-sm": ("split_mode", None),
    "--split-mode": ("split_mode", None),
    "-mg": ("main_gpu", None),
    "--main-gpu": ("main_gpu", None),
    "-kvo": ("kv_offload", True),
    "--kv-offload": ("kv_offload", True),
    "-nkvo": ("kv_offload", False),
    "--no-kv-offload": ("kv_offload", False),
    "--mmap": ("mmap", True),
    "--no-mmap": ("mmap", False),
    "--op-offload": ("op_offload", True),
    "--no-op-offload": ("op_offload", False),
    "--repack": ("repack", True),
    "-nr": ("repack", False),
    "--no-repack": ("repack", False),
    "--no-host": ("no_host", True),
    "--mmproj-offload": ("mmproj_offload", True),
    "--no-mmproj-offload": ("mmproj_offload", False),
    "-cram": ("cache_ram", None),
    "--cache-ram": ("cache_ram", None),
    "-ctxcp": ("ctx_checkpoints", None),
    "--ctx-checkpoints": ("ctx_checkpoints", None),
    "--swa-checkpoints": ("ctx_checkpoints", None),
    "--embedding": ("embeddings", True),
    "--embeddings": ("embeddings", True),
}
_NUMBER_OPTIONS = frozenset(
    {
        "batch_size",
        "ubatch_size",
        "ctx_size",
        "parallel",
        "n_gpu_layers",
        "n_cpu_moe",
        "main_gpu",
        "cache_ram",
        "ctx_checkpoints",
    }
)
# Fields of an instance that are options under the same name.
_SAME = (
    "ctx_size",
    "cache_type_k",
    "cache_type_v",
    "parallel",
    "kv_unified",
    "flash_attn",
    "batch_size",
    "ubatch_size",
    "n_gpu_layers",
)
_BACKEND_ORDER = ("cuda", "rocm", "vulkan")
AUTO = "auto"


class PlanError(ValueError):
    """Something in the inventory that cannot be planned; the text names it and what would be right."""


class Choice(NamedTuple):
    """What fit_context is given for instances that leave something open."""

    min_ctx: int = _fit.MIN_CTX
    max_ctx: int | None = None
    headroom_bytes: int = _fit.HEADROOM_BYTES
    ladder: Sequence[str] | None = None


class Host(NamedTuple):
    """What is known of one host, in plain types."""

    name: str
    instances: Sequence[Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Any]]
    """Entries of llama_model_files by their name."""
    devices: Sequence[Mapping[str, Any]]
    ram_bytes: int | None
    build: str
    backends: Sequence[str] | None
    """None: not said, so every device counts."""
    choice: Choice = Choice()
    notes: Sequence[str] = ()
    """What a person should know of the host itself."""
    problem: str = ""
    """Why nothing could be learned of this host."""
    build_name: str = ""
    """The build that the host really gets, of which `build` is the nearest that the planner has rules for."""


ReadModel = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From an entry of llama_model_files to what gguf_info returns; raises ValueError."""


def plain(value: Any) -> Any:
    """Python's own types out of Ansible's tagged and lazy ones."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return str(value)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


# ---- what the inventory declares


def declared_devices(entries: Any) -> list[dict[str, Any]]:
    """The planner's devices of the inventory's plan_devices: sizes in bytes, or in GiB as people know them."""
    if not isinstance(entries, (list, tuple)):
        raise PlanError(
            f"plan_devices is {entries!r}, but must be a list of {{name, backend, total_gib or total_bytes}}"
        )
    devices = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise PlanError(f"plan_devices has {entry!r}, but each entry must be {{name, backend, total_gib}}")
        unknown = set(entry) - {"name", "backend", "total_bytes", "total_gib", "free_bytes", "free_gib", "integrated"}
        if unknown:
            raise PlanError(
                f"plan_devices has an entry with {', '.join(sorted(map(str, unknown)))}; known are name, backend,"
                " total_bytes or total_gib, free_bytes or free_gib, integrated"
            )
        name = str(entry.get("name", ""))
        if not re.fullmatch(r"[A-Za-z]+[0-9]+", name):
            raise PlanError(f"plan_devices has an entry named {name!r}; name it as llama-server does, such as CUDA0")
        backend = entry.get("backend") or re.sub(r"\d+$", "", name).lower()
        if backend not in _BACKEND_ORDER:
            raise PlanError(f"plan_devices: {name} has the backend {backend!r}; it must be cuda, rocm or vulkan")
        total = _size(entry, "total", name)
        free = _size(entry, "free", name)
        if total is None:
            raise PlanError(f"plan_devices: {name} has neither total_bytes nor total_gib")
        if free is not None and free > total:
            raise PlanError(f"plan_devices: {name} has {free} bytes free of {total}")
        devices.append(
            {
                "name": name,
                "backend": str(backend),
                "total_bytes": total,
                "free_bytes": total if free is None else free,
                "integrated": entry.get("integrated") is True,
            }
        )
    names = [str(device["name"]) for device in devices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanError(f"plan_devices names {', '.join(twice)} twice")
    return devices


def _size(entry: Mapping[str, Any], which: str, name: str) -> int | None:
    given = [(unit, entry[f"{which}_{unit}"]) for unit in ("bytes", "gib") if entry.get(f"{which}_{unit}") is not None]
    if not given:
        return None
    if len(given) > 1:
        raise PlanError(f"plan_devices: {name} has both {which}_bytes and {which}_gib; give one")
    unit, value = given[0]
    return to_bytes(value, unit, f"plan_devices: {which}_{unit} of {name}")


def to_bytes(value: Any, unit: str, what: str) -> int:
    """A size that a person wrote, in bytes or GiB."""
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**60:
        raise PlanError(f"{what} is {value!r}, but must be a number above 0")
    return int(value * (GIB if unit == "gib" else 1))


def options_of_arguments(words: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The planner's options in extra_args, and words that cannot be read."""
    options: dict[str, Any] = {}
    problems = []
    index = 0
    while index < len(words):
        word = str(words[index])
        index += 1
        known = ARGUMENTS.get(word)
        if known is None:
            continue
        name, value = known
        if value is None:
            if index >= len(words):
                problems.append(f"extra_args: {word} needs a value, but nothing follows it")
                break
            value = str(words[index])
            index += 1
            if name in _NUMBER_OPTIONS and re.fullmatch(r"-?\d+", value):
                value = int(value)
        if name == "override_tensor" and name in options:
            value = f"{options[name]},{value}"
        options[name] = value
    return options, problems


def instance_options(instance: Mapping[str, Any], devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The planner's options of an instance; values that are to be chosen stay ``auto``."""
    merged = {**DEFAULTS, **{key: value for key, value in instance.items() if value is not None}}
    options: dict[str, Any] = {key: merged[key] for key in _SAME if key in merged}
    extra, problems = options_of_arguments(merged.get("extra_args") or [])
    if problems:
        raise PlanError("; ".join(problems))
    if merged.get("load_mode") not in (None, "", AUTO):
        options["mmap"] = "mmap" in str(merged["load_mode"]).split("+")
    if options.get("n_gpu_layers") in ("all", None):
        options.pop("n_gpu_layers", None)
    if not devices:
        options["n_gpu_layers"] = 0
    options["cache_ram"] = merged["cache_ram_mib"]
    if merged.get("fa_all_quants"):
        options["fa_all_quants"] = True
    # The role writes --fit off: the plan decides, not the program.
    options["fit"] = False
    options.update(extra)
    return options


def environment_of(instance: Mapping[str, Any]) -> dict[str, str]:
    env = {str(key): str(value) for key, value in (instance.get("env") or {}).items()}
    if instance.get("turbo_layer_adaptive") is not None:
        env["TURBO_LAYER_ADAPTIVE"] = str(instance["turbo_layer_adaptive"])
    return env


def devices_of(instance: Mapping[str, Any], host: Host) -> tuple[list[Mapping[str, Any]], str]:
    """The devices that an instance runs on, and what a person should know about that choice.

    As the role does it: those that are named, else the first of the instance's backend.
    """
    usable = [d for d in host.devices if host.backends is None or d["backend"] in host.backends]
    unused = [d["name"] for d in host.devices if d not in usable]
    named = [str(name) for name in instance.get("devices") or []]
    if named == ["none"]:
        return [], ""
    if instance.get("backend") == "cpu":
        left_out = ", ".join(unused) if host.backends is not None else ""
        return [], f"runs on the CPU: llama_build_backends leaves out {left_out}" if left_out else ""
    if named:
        there = {device["name"]: device for device in usable}
        missing = [name for name in named if name not in there]
        if missing:
            raise PlanError(
                f"device {', '.join(missing)} is not there; this host has {', '.join(there) or 'no usable device'}"
            )
        return [there[name] for name in named], ""
    backend = instance.get("backend")
    if backend is not None and backend not in _BACKEND_ORDER:
        raise PlanError(f"backend {backend!r} must be one of cpu, {', '.join(_BACKEND_ORDER)}")
    for candidate in [backend] if backend else host.backends or _BACKEND_ORDER:
        found = [device for device in usable if device["backend"] == candidate]
        if found:
            others = [device["name"] for device in found[1:]]
            note = f"uses {found[0]['name']} only; list devices to use {', '.join(others)} too" if others else ""
            return [found[0]], note
    if backend:
        raise PlanError(f"backend {backend} has no device here; this host has {', '.join(unused) or 'none'}")
    if unused:
        return [], f"runs on the CPU: llama_build_backends leaves out {', '.join(unused)}"
    return [], ""


# ---- one host


class _Budgeter:
    """memory_budget with a memory: the same model, devices, options, build and environment are computed once."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, Any]] = {}
        self._models: dict[int, tuple[Any, Any]] = {}
        self.computed = 0

    def model(self, model: Mapping[str, Any]) -> Any:
        """The model in the form that does not have to be read again for each budget."""
        key = id(model)
        if key not in self._models:
            # The mapping is kept, so that its id stays its own.
            self._models[key] = (model, _memory.load_model(model))
        return self._models[key][1]

    def __call__(
        self,
        digest: str,
        model: Mapping[str, Any],
        devices: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        build: str,
        env: Mapping[str, str],
    ) -> dict[str, Any]:
        key = _canonical([digest, devices, options, build, env])
        if key not in self._seen:
            self.computed += 1
            self._seen[key] = _memory.memory_budget(self.model(model), devices, options, build, env)
        return self._seen[key]


def _needs(budget: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Memory by device as plain numbers; for the RAM what may grow (prompt cache, checkpoints) stands apart."""
    parts = {name: dict(part) for name, part in budget["devices"].items()}
    host = parts.setdefault("host", {"total": 0, "other": 0})
    growing = sum(
        note["bytes"]
        for note in budget["notes"]
        if note["counted"] and note["device"] == "host" and "at most" in note["what"]
    )
    host["growing"] = growing
    host["other"] = host.get("other", 0) - growing
    host["total"] -= growing
    return parts


def _with_free(devices: Sequence[Mapping[str, Any]], used: Mapping[str, int]) -> list[dict[str, Any]]:
    """The devices as they are when the instances before this one hold their memory."""
    return [
        {
            "name": device["name"],
            "backend": device["backend"],
            "total_bytes": device["total_bytes"],
            # The predictor takes 0 for "not known"; a device that is full has no more than a byte.
            "free_bytes": max(device["free_bytes"] - used.get(device["name"], 0), 1),
        }
        for device in devices
    ]


class _Planner:
    def __init__(self, read_model: ReadModel) -> None:
        self.read_model = read_model
        self.budget = _Budgeter()
        self.hosts: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self._infos: dict[str, Mapping[str, Any]] = {}
        self._chosen: dict[str, dict[str, Any]] = {}
        self._curves: dict[str, dict[str, Any]] = {}

    def info(self, name: str, host: Host) -> tuple[str, Mapping[str, Any]]:
        """The model of an instance: an id that stands for its content, and what gguf_info says of it."""
        entry = host.files.get(name)
        if entry is None:
            listed = ", ".join(sorted(host.files)) or "none"
            raise PlanError(f"model {name!r} is not in llama_model_files; listed are: {listed}")
        digest = str(entry.get("sha256") or _canonical({k: v for k, v in entry.items() if k != "token"}))
        key = f"{digest} {host.build}"
        if key not in self._infos:
            self._infos[key] = self.read_model({**entry, "build": host.build})
            model = self._infos[key]["model"]
            self.models[digest] = {
                "name": name,
                "sha256": entry.get("sha256"),
                "architecture": model["architecture"],
                "file_bytes": model["file_bytes"],
                "header_bytes": model["header_bytes"],
                "tensors": len(model["tensors"]),
                "checks": self._infos[key]["checks"],
            }
        return digest, self._infos[key]

    def chosen(
        self,
        digest: str,
        model: Mapping[str, Any],
        devices: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        host: Host,
        env: Mapping[str, str],
        ram_bytes: int | None,
    ) -> dict[str, Any]:
        """What fit_context chooses for the options that are auto; remembered."""
        # What may grow in RAM is told apart and limits no choice.
        asked = {**options, "cache_ram": 0, "ctx_checkpoints": 0}
        key = _canonical([digest, devices, asked, host.build, env, ram_bytes, host.choice])
        if key not in self._chosen:
            try:
                self._chosen[key] = _fit.fit_context(
                    self.budget.model(model),
                    devices,
                    asked,
                    host.build,
                    env,
                    ladder=host.choice.ladder,
                    min_ctx=host.choice.min_ctx,
                    max_ctx=host.choice.max_ctx,
                    headroom_bytes=host.choice.headroom_bytes,
                    ram_bytes=ram_bytes,
                )
            except _fit.FitError as error:
                self._chosen[key] = {"error": str(error)}
        return self._chosen[key]

    def instance(self, host: Host, instance: Mapping[str, Any], used: Mapping[str, int], kept: int) -> dict[str, Any]:
        """One instance on a host where the instances before it use C{used}; C{kept} bytes of each device stay free."""
        name = str(instance.get("name", ""))
        row: dict[str, Any] = {
            "name": name,
            "model": str(instance.get("model", "")),
            "build": host.build,
            "state": str(instance.get("state", "started")),
            "devices": [],
            "verdict": UNKNOWN,
            "reason": "",
            "warnings": [],
        }
        try:
            if not name:
                raise PlanError("an instance has no name")
            digest, info = self.info(row["model"], host)
            devices, note = devices_of(instance, host)
            options = instance_options(instance, devices)
            env = environment_of(instance)
            projector = instance.get("mmproj")
            if projector:
                _skipped, projected = self.info(str(projector), host)
                options["mmproj_bytes"] = projected["model"]["file_bytes"] or 0
        except ValueError as error:
            row["reason"] = str(error)
            return row
        row["devices"] = [device["name"] for device in devices]
        row["digest"] = digest
        if note:
            row["warnings"].append(note)
        errors = [check["message"] for check in info["checks"] if check["level"] == "error"]
        row["warnings"] += [check["message"] for check in info["checks"] if check["level"] == "warning"]
        if errors:
            row["verdict"], row["reason"] = REFUSED, "; ".join(errors)
            return row
        if instance.get("draft"):
            row["warnings"].append("the draft model's memory is not part of this plan")
        free = _with_free(devices, {device["name"]: used.get(device["name"], 0) + kept for device in devices})
        model = info["model"]
        row["auto"] = sorted(key for key in ("ctx_size", "cache_type_k", "cache_type_v") if options.get(key) == AUTO)
        try:
            if row["auto"]:
                ram = None if host.ram_bytes is None else max(ram_usable(host.ram_bytes) - used.get("host", 0), 1)
                choice = self.chosen(digest, model, free, options, _own_choice(host, instance), env, ram)
                if "error" in choice:
                    row["verdict"], row["reason"] = SHORT, choice["error"]
                    return row
                options = {**options, **{name: choice["options"][name] for name in row["auto"]}}
                row["considered"] = choice["considered"]
            budget = self.budget(digest, model, free, options, host.build, env)
        except ValueError as error:
            row["verdict"], row["reason"] = REFUSED, str(error)
            return row
        row["options"] = options
        row["env"] = env
        row["context"] = budget["context"]
        row["caches"] = [{key: value for key, value in cache.items() if key != "layers"} for cache in budget["caches"]]
        row["memory"] = _needs(budget)
        row["notes"] = budget["notes"]
        row["warnings"] += budget["warnings"]
        short = [d["name"] for d in free if row["memory"][d["name"]]["total"] > d["free_bytes"]]
        if budget["accepted"] and not short:
            row["verdict"] = FITS
        else:
            row["verdict"] = SHORT if short else REFUSED
            row["reason"] = budget["reason"]
        return row

    # -- one host

    def host(self, host: Host) -> dict[str, Any]:
        """The plan of a host; hosts that are equal but for their names share it."""
        key = _canonical(host._replace(name="")._asdict())
        if host.problem or key not in self.hosts:
            result = self._host(host)
            if host.problem:
                return {**result, "name": host.name}
            self.hosts[key] = result
        return {**self.hosts[key], "name": host.name}

    def _host(self, host: Host) -> dict[str, Any]:
        result: dict[str, Any] = {
            "name": host.name,
            "build": host.build,
            "build_name": host.build_name or host.build,
            "verdict": UNKNOWN,
            "reason": host.problem,
            "notes": list(host.notes),
            "devices": [{**device, "needed_bytes": 0} for device in host.devices],
            "ram": None,
            "instances": [],
        }
        if host.problem:
            return result
        wanted = [instance for instance in host.instances if instance.get("state") != "absent"]
        rows: dict[int, dict[str, Any]] = {}
        used: dict[str, int] = {}
        # What is fixed comes first; what may be chosen then shares the rest.
        fixed = [n for n, instance in enumerate(wanted) if not _is_open(instance)]
        open_ = [n for n, instance in enumerate(wanted) if _is_open(instance)]
        for number in fixed:
            rows[number] = self.instance(host, wanted[number], used, 0)
            _take(used, rows[number])
        for place, number in enumerate(open_):
            rows[number] = self._open(host, wanted, number, open_[place + 1 :], used)
            _take(used, rows[number])
        result["instances"] = [rows[number] for number in range(len(wanted))]
        for device in result["devices"]:
            device["needed_bytes"] = used.get(device["name"], 0)
        result["ram"] = self._ram(host, result)
        verdicts = [row["verdict"] for row in result["instances"]]
        if result["ram"] is not None and result["ram"]["short_bytes"] > 0:
            verdicts.append(SHORT)
            result["reason"] = (
                f"RAM: the instances need {gib(result['ram']['needed_bytes'])}, and"
                f" {gib(result['ram']['usable_bytes'])} of {gib(host.ram_bytes or 0)} are for them"
            )
        result["verdict"] = max(verdicts, key=VERDICTS.index, default=FITS)
        return result

    def _open(
        self,
        host: Host,
        wanted: Sequence[Mapping[str, Any]],
        number: int,
        later: Sequence[int],
        used: Mapping[str, int],
    ) -> dict[str, Any]:
        """An instance that may choose, beside others that may choose after it: each gets what it needs at the least,
        and an equal part of what is left then."""
        if not later:
            return self.instance(host, wanted[number], used, 0)
        mine = self.least(host, wanted[number], used)
        names = {str(device["name"]): device for device in host.devices}
        kept = 0
        for name, least in mine.items():
            others = [self.least(host, wanted[other], used).get(name, 0) for other in later]
            sharing = [need for need in others if need]
            spare = names[name]["free_bytes"] - used.get(name, 0) - least - sum(sharing)
            kept = max(kept, sum(sharing) + max(spare, 0) * len(sharing) // (len(sharing) + 1))
        return self.instance(host, wanted[number], used, kept)

    def least(self, host: Host, instance: Mapping[str, Any], used: Mapping[str, int]) -> dict[str, int]:
        """What an instance that may choose needs on each device at the least context and in the smallest types."""
        least = dict(instance)
        if instance.get("ctx_size", AUTO) == AUTO:
            least["ctx_size"] = host.choice.min_ctx
        options_k, options_v = (instance.get(key, DEFAULTS[key]) for key in ("cache_type_k", "cache_type_v"))
        if AUTO not in (options_k, options_v):
            row = self.instance(host, least, used, 0)
            return _totals(row)
        found: dict[str, int] = {}
        for type_k, type_v in ladder_of(host):
            candidate = {
                **least,
                "cache_type_k": type_k if options_k == AUTO else options_k,
                "cache_type_v": type_v if options_v == AUTO else options_v,
            }
            row = self.instance(host, candidate, used, 0)
            totals = _totals(row)
            if row["verdict"] in (FITS, SHORT) and totals and (not found or sum(totals.values()) < sum(found.values())):
                found = totals
        return found

    def _ram(self, host: Host, result: Mapping[str, Any]) -> dict[str, Any] | None:
        if host.ram_bytes is None:
            return None
        running = [row for row in result["instances"] if row["state"] == "started" and "memory" in row]
        shared = {device["name"] for device in host.devices if device.get("integrated")}
        needed = sum(row["memory"]["host"]["total"] for row in running)
        mapped = sum(device["needed_bytes"] for device in result["devices"] if device["name"] in shared)
        growing = sum(row["memory"]["host"]["growing"] for row in running)
        usable = ram_usable(host.ram_bytes)
        return {
            "total_bytes": host.ram_bytes,
            "reserve_bytes": host.ram_bytes - usable,
            "usable_bytes": usable,
            "needed_bytes": needed + mapped,
            "mapped_by_gpus_bytes": mapped,
            "growing_bytes": growing,
            "short_bytes": max(needed + mapped - usable, 0),
        }

    # -- the plot

    def curves(self, host: Host, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Memory of the fullest device against the context, for the pairs that run on the backend."""
        if "options" not in row:
            return None
        digest, info = self.info(row["model"], host)
        devices = [dict(device) for device in host.devices if device["name"] in row["devices"]]
        key = _canonical([digest, devices, host.ram_bytes, row["options"], host.build, row["env"]])
        if key not in self._curves:
            self._curves[key] = self._curve(digest, info["model"], devices, row, host)
        return self._curves[key]

    def _curve(
        self, digest: str, model: Mapping[str, Any], devices: list[dict[str, Any]], row: Mapping[str, Any], host: Host
    ) -> dict[str, Any]:
        ram = None if host.ram_bytes is None else ram_usable(host.ram_bytes)
        at = fullest(row, devices)
        limit = next((device["free_bytes"] for device in devices if device["name"] == at), ram)
        architecture = model["architecture"]
        longest = max(int(model["metadata"].get(f"{architecture}.context_length") or 0), row["context"]["n_ctx"])
        # Nothing is refused for want of room here: the plot shows where the limit is crossed. A power of two leaves the
        # shares of several devices as they are.
        roomy = [
            {**device, "total_bytes": device["total_bytes"] * 2**20, "free_bytes": device["free_bytes"] * 2**20}
            for device in devices
        ]
        chosen = (row["options"]["cache_type_k"], row["options"]["cache_type_v"])
        sizes = contexts(longest)

        def ask(type_k: str, type_v: str, size: int) -> dict[str, Any] | None:
            options = {**row["options"], "ctx_size": size, "cache_type_k": type_k, "cache_type_v": type_v}
            try:
                found = self.budget(digest, model, roomy, options, host.build, row["env"])
            except ValueError:
                return None
            return found if found["accepted"] else None

        def caches(type_k: str, type_v: str, size: int) -> int:
            options = {**row["options"], "ctx_size": size, "cache_type_k": type_k, "cache_type_v": type_v}
            return _memory.kv_cache_bytes(self.budget.model(model), options, host.build, row["env"])

        # The pair that is planned, or the first that runs, is computed in full at each size. Others differ from it by
        # their caches, which are exact at each size, and by what a single budget at the largest size shows: f16 copies,
        # which grow with the context, and a few buffers that do not.
        lines = []
        pairs = ladder_of(host)
        full: list[dict[str, int]] = []
        reference = chosen
        for type_k, type_v in [chosen, *(pair for pair in pairs if pair != chosen)]:
            if not full:
                budgets = [ask(type_k, type_v, size) for size in sizes]
                if None in budgets:
                    continue
                reference = (type_k, type_v)
                full = [_needs(budget)[at] for budget in budgets if budget is not None]
                points = [(size, part["total"]) for size, part in zip(sizes, full)]
            else:
                budget = ask(type_k, type_v, sizes[-1])
                if budget is None:
                    continue
                part = _needs(budget)[at]
                share = full[-1]["kv"] / max(caches(*reference, sizes[-1]), 1)
                other = part["other"] - full[-1]["other"]
                rest = part["total"] - full[-1]["total"] - other
                rest -= round(share * (caches(type_k, type_v, sizes[-1]) - caches(*reference, sizes[-1])))
                points = [
                    (
                        size,
                        known["total"]
                        + round(share * (caches(type_k, type_v, size) - caches(*reference, size)))
                        + other * size // sizes[-1]
                        + rest,
                    )
                    for size, known in zip(sizes, full)
                ]
            lines.append({"type_k": type_k, "type_v": type_v, "points": between(points)})
        order = {pair: number for number, pair in enumerate(pairs)}
        lines.sort(key=lambda line: order.get((str(line["type_k"]), str(line["type_v"])), len(pairs)))
        return {
            "device": at,
            "limit_bytes": limit,
            "context": row["context"]["n_ctx"],
            "type_k": chosen[0],
            "type_v": chosen[1],
            "lines": lines,
        }


def _own_choice(host: Host, instance: Mapping[str, Any]) -> Host:
    """The host as this instance sees it: it may have a bound of its own for its context."""
    own: dict[str, Any] = {key: int(instance[key]) for key in ("min_ctx", "max_ctx") if instance.get(key) is not None}
    return host._replace(choice=host.choice._replace(**own)) if own else host


def _is_open(instance: Mapping[str, Any]) -> bool:
    return any({**DEFAULTS, **instance}.get(key) == AUTO for key in ("ctx_size", "cache_type_k", "cache_type_v"))


def _totals(row: Mapping[str, Any]) -> dict[str, int]:
    return {name: part["total"] for name, part in row.get("memory", {}).items() if name != "host"}


def _take(used: dict[str, int], row: Mapping[str, Any]) -> None:
    """Note what a running instance holds; a stopped one holds nothing."""
    if row["state"] != "started":
        return
    for name, part in row.get("memory", {}).items():
        used[name] = used.get(name, 0) + part["total"]


def ram_usable(ram_bytes: int) -> int:
    """The RAM that models may take: the system keeps a tenth, at most 8 GiB."""
    return ram_bytes - min(ram_bytes // 10, 8 * GIB)


def ladder_of(host: Host) -> list[tuple[str, str]]:
    """The pairs of cache types that are candidates on a host, the preferred first."""
    return [(pair.type_k, pair.type_v) for pair in _fit.parse_ladder(host.choice.ladder, host.build)]


def fullest(row: Mapping[str, Any], devices: Sequence[Mapping[str, Any]]) -> str:
    """The device of an instance that is nearest to its limit; the RAM where there is none."""
    ratios = {
        str(device["name"]): row["memory"][device["name"]]["total"] / max(device["free_bytes"], 1) for device in devices
    }
    return max(ratios, key=lambda name: ratios[name], default="host")


def contexts(longest: int) -> list[int]:
    """Contexts that are computed for a plot: from 2048 to the model's own, each twice the one before."""
    return sorted({*(size for size in (2048 * 2**number for number in range(24)) if size < longest), longest})


def between(points: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The points with others between them, four to each doubling of the context.

    The caches grow by the same bytes for each token, and all but a kink of the compute buffers does too, so what lies
    between two points lies on the straight line; on an axis of powers of two that line is a curve.
    """
    result: list[list[int]] = []
    for (size_a, bytes_a), (size_b, bytes_b) in zip(points, points[1:]):
        number = 0
        while (size := round(size_a * 2 ** (number / 4))) < size_b:
            result.append([size, bytes_a + (bytes_b - bytes_a) * (size - size_a) // (size_b - size_a)])
            number += 1
    return [*result, list(points[-1])]


def gib(count: float) -> str:
    """Bytes as a person compares them: GiB with two digits, MiB below one GiB."""
    return f"{count / GIB:.2f} GiB" if abs(count) >= GIB else f"{count / MIB:.0f} MiB"


def plan_host(host: Host, read_model: ReadModel) -> dict[str, Any]:
    """The plan of one host, as it stands in the plan of a fleet."""
    return _Planner(read_model).host(host)


def plan_fleet(hosts: Iterable[Host], read_model: ReadModel, *, plots: bool = True) -> dict[str, Any]:
    """The plan of all hosts: a table, the models, and one plot for each kind of instance."""
    planner = _Planner(read_model)
    planned = []
    curves: dict[str, dict[str, Any]] = {}
    for host in hosts:
        if host.build not in _builds.BUILDS:
            host = host._replace(
                problem=f"build {host.build!r} has no rules here; known are {', '.join(sorted(_builds.BUILDS))}"
            )
        result = planner.host(host)
        if plots:
            for row in result["instances"]:
                if "plot" in row:
                    continue
                curve = planner.curves(host, row)
                if curve is not None:
                    row["plot"] = f"p{_known(curves, curve)}"
        planned.append(result)
    verdicts = [row["verdict"] for host in planned for row in host["instances"]]
    return {
        "version": 1,
        "summary": {
            "hosts": len(planned),
            "instances": len(verdicts),
            **{verdict.replace(" ", "_"): verdicts.count(verdict) for verdict in VERDICTS},
            "warnings": sum(len(row["warnings"]) for host in planned for row in host["instances"]),
            "hosts_not_fitting": sum(host["verdict"] != FITS for host in planned),
        },
        "models": planner.models,
        "plots": curves,
        "hosts": planned,
    }


def _known(curves: dict[str, dict[str, Any]], curve: dict[str, Any]) -> int:
    for number, other in enumerate(curves.values()):
        if other is curve:
            return number
    curves[f"p{len(curves)}"] = curve
    return len(curves) - 1


# ---- the terminal


COLUMNS = ("host", "instance", "device", "model", "context", "K/V", "weights", "KV", "compute", "free", "verdict")


def table(plan: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table: one for each device that an instance uses (the RAM where it uses none)."""
    rows = []
    for host in plan["hosts"]:
        if not host["instances"]:
            rows.append(
                [host["name"], "-", "-", "-", "", "", "", "", "", "", host["verdict"] if host["reason"] else "-"]
            )
        for row in host["instances"]:
            if "memory" not in row:
                devices = ",".join(row["devices"]) or "-"
                rows.append([host["name"], row["name"], devices, row["model"], "", "", "", "", "", "", row["verdict"]])
                continue
            types = f"{row['options']['cache_type_k']}/{row['options']['cache_type_v']}"
            left = {device["name"]: device["free_bytes"] - device["needed_bytes"] for device in host["devices"]}
            for name in row["devices"] or ["host"]:
                part = row["memory"][name]
                if name == "host":
                    ram = host["ram"]
                    free = gib(ram["usable_bytes"] - ram["needed_bytes"]) if ram else "?"
                else:
                    free = gib(left[name])
                rows.append(
                    [
                        host["name"],
                        row["name"],
                        "RAM" if name == "host" else name,
                        row["model"],
                        str(row["context"]["n_ctx"]),
                        types,
                        gib(part["weights"]),
                        gib(part["kv"] + part["recurrent"]),
                        gib(part["compute"] + part["output"] + part["other"]),
                        free,
                        row["verdict"],
                    ]
                )
    return rows


def failures(plan: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that does not fit, is refused or is not known."""
    lines = []
    for host in plan["hosts"]:
        if host["reason"]:
            lines.append(f"{host['name']}: {host['reason']}")
        lines.extend(
            f"{host['name']}, {row['name'] or 'an instance'}: {row['verdict']}: {row['reason']}"
            for row in host["instances"]
            if row["verdict"] != FITS
        )
    return lines
