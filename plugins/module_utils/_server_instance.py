# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules for a list of instances, checked before anything on the host changes.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _firewall
from ansible_collections.llamafleet.turboquant.plugins.module_utils._server_flags import TURBO_TYPES, FlagError

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,47}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_KEY = re.compile(r"[\x21-\x7e]+")
_MEMORY = re.compile(r"auto|infinity|[1-9][0-9]*[KMGT]?|[1-9][0-9]?%|100%")
_DEVICE = re.compile(r"[A-Za-z]+[0-9]+|none")
BACKENDS = ("cpu", "cuda", "rocm", "vulkan")
MIN_KEY = 16
SOCKET_ROOT = "/run/llamafleet"


class InstanceError(Exception):
    """The list cannot be brought about; the text names the instance, the value, the rule and what would be right."""


def loopback(host: str) -> bool:
    """True when only the machine itself can connect."""
    if host.endswith(".sock") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def endpoint(instance: dict[str, Any]) -> str:
    """host:port as people and the rules write it."""
    host = instance["host"]
    if host.endswith(".sock"):
        return f"unix:{host}"
    return f"[{host}]:{instance['port']}" if ":" in host else f"{host}:{instance['port']}"


def _whole(what: str, value: Any, least: int, most: int | None = None, hint: str = "") -> int:
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"-?\d+", value))
    ):
        raise InstanceError(f"{what} is {value!r}, but must be a whole number{hint}")
    number = int(value)
    if number < least or (most is not None and number > most):
        span = f"{least} to {most}" if most is not None else f"at least {least}"
        raise InstanceError(f"{what} is {number}, but must be {span}{hint}")
    return number


def _network(where: str, address: str) -> None:
    try:
        ipaddress.ip_network(address, strict=True)
    except ValueError as exc:
        raise InstanceError(f"{where}allow_from {address!r}: {exc}; write it like 10.0.0.0/8") from None


def _least_rate(where: str, value: Any) -> tuple[float, float]:
    """Return what min_tps asks for: tokens per second, and percents of what the release before decoded."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%?)", str(value))
    if match is None or (match[2] and float(match[1]) > 100):
        raise InstanceError(
            f"{where}min_tps {value!r} is neither a number of tokens per second, such as 25, nor up to 100% of what "
            "the release before decoded, such as 50%; 0 asks for nothing"
        )
    return (0.0, float(match[1])) if match[2] else (float(match[1]), 0.0)


def complete(raw: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Check one instance by itself and fill in what it leaves open."""
    given = {key: value for key, value in raw.items() if value is not None}
    name = str(given.get("name", ""))
    if not _NAME.fullmatch(name):
        raise InstanceError(
            f"instance name {name!r}: use 1 to 48 lower-case letters, digits and . _ -; "
            "it becomes llama-server@NAME.service"
        )
    if name.endswith(".trial"):
        raise InstanceError(f"instance name {name!r}: the ending .trial is kept for trials of {name[:-6]!r}")
    item: dict[str, Any] = {**dict.fromkeys(raw), **defaults, **given, "name": name}
    where = f"instance {name!r}: "

    host = str(item["host"])
    if host.endswith(".sock"):
        if not re.fullmatch(rf"{SOCKET_ROOT}/{re.escape(name)}/[A-Za-z0-9._-]+\.sock", host):
            raise InstanceError(
                f"{where}host {host!r}: a socket lies in the instance's own folder, for example "
                f"{SOCKET_ROOT}/{name}/api.sock, which systemd removes with a stale socket in it"
            )
        item["port"] = 0
    else:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            if not _HOSTNAME.fullmatch(host):
                raise InstanceError(f"{where}host {host!r} is neither an address nor a host name") from None
        hint = "; llama-server would take it modulo 65536 and listen elsewhere"
        item["port"] = _whole(f"{where}port", item.get("port"), 1, 65535, hint)
    item["host"] = host

    if item["backend"] not in BACKENDS:
        raise InstanceError(f"{where}backend {item['backend']!r} is not one of {', '.join(BACKENDS)}")
    if item["ctx_size"] != "auto":
        item["ctx_size"] = _whole(f"{where}ctx_size", item["ctx_size"], 256, None, " or auto")
    item["parallel"] = _whole(f"{where}parallel", item["parallel"], 1, 256)
    for key in ("batch_size", "ubatch_size", "threads"):
        if item.get(key) is not None:
            item[key] = _whole(f"{where}{key}", item[key], 1)
    item["cache_ram_mib"] = _whole(
        f"{where}cache_ram_mib", item["cache_ram_mib"], 0, None, "; -1 (no limit) is not taken"
    )

    turbo = [item[key] for key in ("cache_type_k", "cache_type_v") if item[key] in TURBO_TYPES]
    if turbo and item["flash_attn"] != "on":
        if "flash_attn" in given and given["flash_attn"] == "off":
            raise InstanceError(f"{where}flash_attn is off, but {turbo[0]} caches exist only with it; set it to on")
        item["flash_attn"] = "on"
    if item["flash_attn"] not in ("on", "off", "auto"):
        raise InstanceError(f"{where}flash_attn {item['flash_attn']!r} is not one of on, off, auto")
    if item["flash_attn"] == "off" and item["cache_type_v"] not in ("f16", "bf16", "f32"):
        raise InstanceError(
            f"{where}cache_type_v {item['cache_type_v']} needs flash_attn on; without it the server crashes"
        )

    devices = [str(device) for device in item["devices"]]
    for device in devices:
        if not _DEVICE.fullmatch(device):
            raise InstanceError(f"{where}device {device!r} is not a name of llama-server --list-devices, such as CUDA0")
    if not devices:
        # Named, so that a missing driver ends in an error and not in a quiet server on the CPU.
        devices = {"cpu": ["none"], "cuda": ["CUDA0"], "rocm": ["ROCm0"], "vulkan": ["Vulkan0"]}[item["backend"]]
    item["devices"] = devices
    layers = item.get("n_gpu_layers")
    if layers is None:
        item["n_gpu_layers"] = None if item["backend"] == "cpu" else 999
    elif layers not in ("all", "auto"):
        item["n_gpu_layers"] = _whole(f"{where}n_gpu_layers", layers, 0)
    elif layers == "all":
        item["n_gpu_layers"] = 999
    else:
        raise InstanceError(f"{where}n_gpu_layers 'auto' leaves it to the server; give a number or all")

    keys = [str(key) for key in item.get("api_keys") or []]
    for key in keys:
        if not _KEY.fullmatch(key) or len(key) < MIN_KEY or key.startswith("#"):
            raise InstanceError(
                f"{where}an API key has {len(key)} characters; give at least {MIN_KEY} printable ones without spaces, "
                "not beginning with # (for example from: openssl rand -base64 32)"
            )
    if len(set(keys)) != len(keys):
        raise InstanceError(f"{where}an API key is listed twice")
    item["api_keys"] = keys
    item["has_keys"] = bool(keys)
    if not keys and not loopback(host) and not item["allow_open"]:
        raise InstanceError(
            f"{where}host {host} can be reached from other machines, but there is no API key; list api_keys, "
            "listen on 127.0.0.1, or set llama_server_allow_open: true"
        )

    tls = {key: str(value) for key, value in (item.get("tls") or {}).items() if value}
    for kind in ("certificate", "key"):
        if (kind in tls) and (f"{kind}_content" in tls):
            raise InstanceError(f"{where}tls has both {kind} and {kind}_content; give one")
        if kind in tls and not tls[kind].startswith("/"):
            raise InstanceError(f"{where}tls.{kind} {tls[kind]!r} is not an absolute path on the host")
    has = {kind: kind in tls or f"{kind}_content" in tls for kind in ("certificate", "key")}
    if has["certificate"] != has["key"]:
        missing = "key" if has["certificate"] else "certificate"
        raise InstanceError(
            f"{where}tls lacks the {missing}; with one of the two llama-server would answer in clear text"
        )
    item["tls"] = tls
    item["has_tls"] = has["key"]

    memory = str(item.get("memory_max") or "")
    if memory and not _MEMORY.fullmatch(memory):
        raise InstanceError(f"{where}memory_max {memory!r} is not like 24G, 25769803776, 80%, infinity or auto")
    item["memory_max"] = memory
    for address in item.get("allow_from") or []:
        _network(where, str(address))
    try:
        asked = _firewall.settings(item.get("firewall"), host, loopback(host), item.get("allow_from") or [])
    except _firewall.FirewallError as exc:
        raise InstanceError(f"{where}{exc}") from None
    item["firewall"] = asked and {**asked, "port": item["port"]}
    for key, least in (("start_timeout", 5), ("drain_timeout", 0)):
        item[key] = _whole(f"{where}{key}", item[key], least)
    item["min_tps"], item["min_tps_percent"] = _least_rate(where, item["min_tps"])
    if item["state"] not in ("started", "stopped", "absent"):
        raise InstanceError(f"{where}state {item['state']!r} is not one of started, stopped, absent")
    item["alias"] = str(item.get("alias") or item["model"])
    item["environment"] = dict(item.get("env") or {})
    for key, variable in (
        ("cuda_unified_memory", "GGML_CUDA_ENABLE_UNIFIED_MEMORY"),
        ("vk_prefer_host_memory", "GGML_VK_PREFER_HOST_MEMORY"),
    ):
        # Their presence alone switches them on, so false means that they are not written.
        if item.get(key):
            item["environment"][variable] = "1"
    if item.get("turbo_layer_adaptive") is not None:
        mode = _whole(f"{where}turbo_layer_adaptive", item["turbo_layer_adaptive"], 0, 7)
        item["environment"]["TURBO_LAYER_ADAPTIVE"] = str(mode)
    return item


def complete_all(raws: list[dict[str, Any]], defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """Check the whole list: each instance, and what they may not share."""
    items = [complete(raw, defaults) for raw in raws]
    names: set[str] = set()
    listening: dict[tuple[str, int], str] = {}
    for item in items:
        if item["name"] in names:
            raise InstanceError(f"instance {item['name']!r} is listed twice; names are unique")
        names.add(item["name"])
        if item["state"] != "started" or item["host"].endswith(".sock"):
            continue
        for (host, port), other in listening.items():
            everywhere = {"0.0.0.0", "::"}
            if port == item["port"] and (host == item["host"] or {host, item["host"]} & everywhere):
                raise InstanceError(
                    f"instances {other!r} and {item['name']!r} both listen on port {port} of {item['host']}; "
                    "give one another port"
                )
        listening[(item["host"], item["port"])] = item["name"]
    return items


def model_paths(item: dict[str, Any], directory: str, listed: dict[str, dict[str, Any]]) -> None:
    """Put the paths of the model, the projector and the draft model into the instance."""
    for key, name in (
        ("model_path", item["model"]),
        ("mmproj_path", item.get("mmproj")),
        ("draft", (item.get("draft") or {}).get("model")),
    ):
        if not name:
            continue
        if listed and name not in listed:
            raise InstanceError(
                f"instance {item['name']!r}: model {name!r} is not in llama_model_files "
                f"({', '.join(sorted(listed)) or 'empty'})"
            )
        path = f"{directory}/{name}"
        if key == "draft":
            item["draft"] = {**item["draft"], "model_path": path}
        else:
            item[key] = path


__all__ = ["BACKENDS", "FlagError", "InstanceError", "complete", "complete_all", "endpoint", "loopback", "model_paths"]
