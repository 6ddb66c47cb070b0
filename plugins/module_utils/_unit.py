# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit files of an instance: the service and its watchdog.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import ipaddress
import math
from typing import Any

MARK = "# Managed by llamafleet.turboquant; changes are overwritten."
PROBE = "/opt/llamafleet/libexec/llama_probe.py"
CREDENTIALS = "/etc/llamafleet/instances"
# A load that fails is tried so often; the pauses between two starts grow from the first to the last of these seconds.
START_BURST = 5
RESTART_SEC, RESTART_STEPS, RESTART_MAX_SEC = 2, 4, 30
# Seconds beyond the instance's own limits before systemd ends a start or a stop itself.
START_SPARE = STOP_SPARE = 30


def unit_name(name: str) -> str:
    return f"llama-server@{name}.service"


def watchdog_name(name: str, kind: str) -> str:
    return f"llama-watchdog@{name}.{kind}"


def quoted(word: str, specifiers: bool = False, variables: bool = True) -> str:
    """One word of a unit file as systemd reads it back.

    specifiers: keep %d and the like, because they are meant. variables: the line expands $NAME (Exec lines do,
    Environment lines do not).
    """
    if not specifiers:
        word = word.replace("%", "%%")
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    if variables:
        word = word.replace("$", "$$")
    plain = word != "" and all((char.isascii() and char.isalnum()) or char in "-_./:,=@%+$" for char in word)
    return word if plain else f'"{word}"'


def _command(words: list[str]) -> str:
    # A flag and its values on one line, so that a diff shows what an operator changed and nothing else.
    lines: list[str] = []
    for word in words:
        text = quoted(word, specifiers=word in ("%d/api-keys", "%d/tls.key", "%d/tls.crt"))
        if not lines or (word.startswith("--") and len(lines[-1]) > 0):
            lines.append(text)
        else:
            lines[-1] += f" {text}"
    return " \\\n    ".join(lines)


def _devices(backend: str) -> list[str]:
    """Which device nodes the backend opens. The names are groups of /proc/devices and may be missing."""
    return {
        "cpu": [],
        # Leaving out nvidia-frontend broke CUDA (NixOS/nixpkgs 331125); the driver's newer name is plain nvidia.
        "cuda": [
            "char-nvidia rw",
            "char-nvidia-frontend rw",
            "char-nvidiactl rw",
            "char-nvidia-caps rw",
            "char-nvidia-uvm rw",
        ],
        "rocm": ["char-kfd rw", "char-drm rw"],
        "vulkan": [
            "char-drm rw",
            "char-nvidia rw",
            "char-nvidia-frontend rw",
            "char-nvidiactl rw",
            "char-nvidia-uvm rw",
        ],
    }[backend]


def _sandbox(item: dict[str, Any], groups: list[str]) -> list[str]:
    gpu = item["backend"] != "cpu"
    lines = [
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "PrivateMounts=yes",
        "PrivateUsers=yes",
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectProc=invisible",
        "LockPersonality=yes",
        "RemoveIPC=yes",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
        "DevicePolicy=closed",
        "UMask=0077",
    ]
    if gpu:
        # The drivers raise limits and set affinities (@resources), read /proc/meminfo and use netlink.
        lines += [
            "SystemCallFilter=~@privileged",
            "PrivateDevices=no",
            "ProcSubset=all",
            "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
        ]
        lines += [f"DeviceAllow={device}" for device in _devices(item["backend"])]
        if groups:
            lines.append(f"SupplementaryGroups={' '.join(groups)}")
    else:
        lines += [
            "SystemCallFilter=~@privileged @resources",
            "PrivateDevices=yes",
            "ProcSubset=pid",
            "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        ]
    # llvmpipe compiles shaders into memory that it then executes; real drivers do not need that.
    lines.append(f"MemoryDenyWriteExecute={'no' if item['jit'] else 'yes'}")
    if item["host"].endswith(".sock"):
        lines.append("IPAddressDeny=any")
    else:
        allowed = _addresses(item)
        if allowed:
            lines += ["IPAddressDeny=any", f"IPAddressAllow={' '.join(allowed)}"]
    return lines


def _addresses(item: dict[str, Any]) -> list[str]:
    """Who may exchange packets with the service; empty means everybody."""
    if item["loopback"]:
        return ["localhost"]
    if not item.get("allow_from"):
        return []
    allowed = ["localhost", *[str(address) for address in item["allow_from"]]]
    try:
        own = ipaddress.ip_address(item["host"])
        if not own.is_unspecified:
            # The readiness check comes from the service's own address.
            allowed.append(str(own))
    except ValueError:
        pass
    return allowed


def start_limit_seconds(item: dict[str, Any]) -> int:
    """In what time START_BURST failed loads have to lie so that there is no further one.

    Longer than the slowest loop takes: every load and every stop up to its own limit, and the pauses between. A load
    that fails only after start_timeout would otherwise be tried for ever. Each pause is longer by the same factor.
    """
    growth = RESTART_MAX_SEC / RESTART_SEC
    pauses = (RESTART_SEC * growth ** (min(n, RESTART_STEPS) / RESTART_STEPS) for n in range(START_BURST))
    attempt = item["start_timeout"] + START_SPARE + item["drain_timeout"] + STOP_SPARE
    # A minute more for a busy machine, in whole minutes for who reads it.
    seconds: float = START_BURST * attempt + sum(pauses)
    return math.ceil(seconds / 60 + 1) * 60


def probe_words(item: dict[str, Any], action: str, *more: str) -> list[str]:
    """The helper's command line, which carries no secret: it reads keys from the credential."""
    words = ["/usr/bin/python3", PROBE, action, "--name", item["name"]]
    if item["host"].endswith(".sock"):
        words += ["--socket", item["host"]]
    else:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(item["host"], item["host"])
        words += ["--host", host, "--port", str(item["port"])]
    if item["has_tls"]:
        words.append("--tls")
    return words + list(more)


def render_service(item: dict[str, Any], release: str, flags: list[str], user: str, groups: list[str]) -> str:
    """Return the text of llama-server@NAME.service."""
    name = item["name"]
    stop_after = item["drain_timeout"] + STOP_SPARE
    lines = [
        MARK,
        "[Unit]",
        f"Description=llama-server instance {name}",
        "After=network-online.target",
        "Wants=network-online.target",
        # A load that fails again and again ends in the state failed, with its last line to be read.
        f"StartLimitIntervalSec={start_limit_seconds(item)}",
        f"StartLimitBurst={START_BURST}",
        "",
        "[Service]",
        "Type=exec",
        f"User={user}",
        f"Group={user}",
        f"SyslogIdentifier=llama-{name}",
    ]
    if item["has_keys"]:
        lines.append(f"LoadCredential=api-keys:{CREDENTIALS}/{name}/api-keys")
    if item["has_tls"]:
        lines.append(f"LoadCredential=tls.crt:{item['tls_certificate_path']}")
        lines.append(f"LoadCredential=tls.key:{item['tls_key_path']}")
    if item["has_keys"]:
        # With an empty key file llama-server starts without authentication.
        lines.append(f"ExecStartPre=/usr/bin/python3 {PROBE} keys --name {name}")
    lines.append(f"ExecStart={quoted(release + '/bin/llama-server')} \\\n    {_command(flags)}")
    ready = probe_words(item, "ready", "--timeout", str(item["start_timeout"]))
    lines.append("ExecStartPost=" + " ".join(quoted(word) for word in ready))
    drain = probe_words(item, "drain", "--timeout", str(item["drain_timeout"]))
    # SIGTERM cuts streams and leaves queued clients without an answer, so requests are waited for first; then the same
    # helper ends the process. With + because only root can read the credential from outside the service.
    lines.append("ExecStop=+" + " ".join(quoted(word) for word in drain))
    environment = {
        "GGML_NO_BACKTRACE": "1",
        "LLAMA_CACHE": f"/var/cache/llamafleet/{name}",
        "HOME": f"/var/cache/llamafleet/{name}",
        **item["environment"],
    }
    for key, value in sorted(environment.items()):
        lines.append(f"Environment={quoted(f'{key}={value}', variables=False)}")
    lines += [
        "Restart=on-failure",
        f"RestartSec={RESTART_SEC}",
        f"RestartSteps={RESTART_STEPS}",
        f"RestartMaxDelaySec={RESTART_MAX_SEC}",
        f"TimeoutStartSec={item['start_timeout'] + START_SPARE}",
        f"TimeoutStopSec={stop_after}",
        "KillMode=mixed",
        "LimitCORE=0",
        "OOMPolicy=stop",
        f"OOMScoreAdjust={item['oom_score_adjust']}",
        f"CacheDirectory=llamafleet/{name}",
        f"RuntimeDirectory=llamafleet/{name}",
    ]
    if "mlock" in item["load_mode"]:
        lines.append("LimitMEMLOCK=infinity")
    # What is still left to the plan has no prediction, and then no limit is known that would not do harm.
    if item["memory_max"] not in ("", "auto"):
        lines.append(f"MemoryMax={item['memory_max']}")
    lines += _sandbox(item, groups)
    lines += ["", "[Install]", "WantedBy=multi-user.target", ""]
    return "\n".join(lines)


def render_watchdog(item: dict[str, Any]) -> dict[str, str]:
    """Return the watchdog's service and timer; no file when the instance opts out."""
    watchdog = item.get("watchdog") or {}
    if not watchdog.get("enabled", True):
        return {}
    name = item["name"]
    words = probe_words(
        item,
        "watch",
        "--timeout",
        str(watchdog["timeout"]),
        "--failures",
        str(watchdog["failures"]),
        "--grace",
        str(watchdog["grace"]),
        "--cooldown",
        str(watchdog["cooldown"]),
        "--unit",
        unit_name(name),
    )
    textfile = item.get("textfile_directory") or ""
    if textfile:
        words += ["--textfile", textfile]
    service = [
        MARK,
        "[Unit]",
        f"Description=Decode one token on llama-server instance {name}, restart it when it is wedged",
        "",
        "[Service]",
        "Type=oneshot",
        f"SyslogIdentifier=llama-watchdog-{name}",
        "ExecStart=" + " ".join(quoted(word) for word in words),
        f"TimeoutStartSec={watchdog['timeout'] * 3 + item['drain_timeout'] + item['start_timeout'] + 90}",
        "StateDirectory=llamafleet/watchdog",
        *([f"ReadWritePaths={quoted(textfile, variables=False)}"] if textfile else []),
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "MemoryDenyWriteExecute=yes",
        "",
    ]
    timer = [
        MARK,
        "[Unit]",
        f"Description=Watch llama-server instance {name}",
        "",
        "[Timer]",
        f"OnActiveSec={watchdog['interval']}",
        f"OnUnitInactiveSec={watchdog['interval']}",
        "AccuracySec=5",
        "",
        "[Install]",
        "WantedBy=timers.target",
        "",
    ]
    return {watchdog_name(name, "service"): "\n".join(service), watchdog_name(name, "timer"): "\n".join(timer)}
