# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge a host before anything on it changes, and say all of what was found, not the first.

Private to the collection: may change at any time, not for use from elsewhere.
"""

from __future__ import annotations

import gzip
import lzma
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _known_builds
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gtt import default_reserve, with_limit
from ansible_collections.llamafleet.turboquant.plugins.module_utils._hardware import (
    GIB,
    Tree,
    driver_too_old,
    planning_devices,
)

REFUSAL = "refusal"
WARNING = "warning"
NOTE = "note"
_ORDER = (REFUSAL, WARNING, NOTE)

# What the role gpu_access puts right in the same run.
_PUT_RIGHT_LATER = frozenset({"nvidia_uvm_missing", "node_without_group"})
# Problems of gpu_info that matter to some backends only.
_CONCERNS = {
    "kfd_node_missing": {"rocm"},
    "kernel_too_old": {"rocm"},
    "firmware_known_bad": {"rocm"},
    "nouveau": {"cuda"},
    "nvidia_smi_missing": {"cuda"},
    "vulkan_device_missing": {"vulkan"},
    "gtt_limits_disagree": {"rocm", "vulkan"},
    "kernel_argument_ignored": {"rocm", "vulkan"},
    "carveout_large": {"rocm", "vulkan"},
}

_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SIGNATURE_MARK = b"~Module signature appended~\n"


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know of a host, with the file, table or document that it rests on."""

    id: str
    severity: str
    message: str
    source: str


@dataclass(frozen=True)
class Advisory:
    """A fault of llama.cpp: the first build of upstream without it, and whether the collection's defaults avoid it."""

    name: str
    effect: str
    fixed_in: int | None
    avoided_by: str = ""


# Source: the project's table of advisories (docs/hardware.md), from upstream's releases and pull requests.
ADVISORIES = (
    Advisory("CVE-2024-32878", "a crafted GGUF file writes beyond its buffer", 2740),
    Advisory("CVE-2024-42477 to 42479", "rpc-server runs code of whoever reaches its port", 3561, "no RPC is built"),
    Advisory("CVE-2025-49847", "a crafted vocabulary overflows a buffer", 5662),
    Advisory("CVE-2025-52566", "a long prompt overflows the tokeniser", 5721),
    Advisory("CVE-2026-33298", "a crafted GGUF file overflows a size", 7824),
    Advisory("CVE-2026-27940", "a crafted GGUF file overflows a size, past the former fix", 8146),
)
# What is open in a named build of the planner. Source: read in that build's own text, and run against it.
OPEN_FAULTS: Mapping[str, Sequence[Advisory]] = {
    "turboquant-69d8e4be": (
        Advisory(
            "llama.cpp #24786", "one request ends the server where context shift is on", None, "context shift is off"
        ),
        Advisory("llama.cpp #26600", "a deeply nested grammar ends the server", None, "restarts, keys and loopback"),
        Advisory("CVE-2026-43631", "use after free with sleep-idle-seconds", None, "sleep-idle-seconds is never set"),
        Advisory(
            "llama.cpp #26511", "a crafted model writes beyond its buffer", None, "model files are pinned by sha256"
        ),
        Advisory("llama.cpp #25655", "answers requests of every web page (CORS)", None, "keys and loopback"),
    ),
}


@dataclass
class Wishes:
    """What a host is to do, as the role's variables say it."""

    tested_releases: Sequence[int] = (43, 44)
    ended_releases: Sequence[int] = (42,)
    architectures: Sequence[str] = ("x86_64", "aarch64")
    backends: Sequence[str] = ("cpu",)
    cuda_version: str = ""
    builds: Sequence[str] = ()
    gpu_targets: Sequence[str] = ()
    """The gfx names that a build for ROCm names; empty for those of the host's GPUs."""
    allow_known_bad: bool = False
    disk: Sequence[Mapping[str, Any]] = ()
    plan: Mapping[str, int] = field(default_factory=dict)
    plan_findings: Sequence[Mapping[str, str]] = ()
    gtt_bytes: int = 0
    """What the role gtt_memory will let the GPU map; 0 where the present limit stays."""


def os_release(text: str | None) -> dict[str, str]:
    """Return the assignments of an os-release file, without their quotes."""
    found = {}
    for line in (text or "").splitlines():
        key, mark, value = line.strip().partition("=")
        if mark and not key.startswith("#"):
            found[key] = value.strip().strip("\"'")
    return found


def gather(tree: Tree) -> dict[str, Any]:
    """Read what the checks need beside the hardware."""
    release = tree.text("/etc/os-release") or tree.text("/usr/lib/os-release")
    return {
        "os": os_release(release),
        "systemd": tree.exists("/run/systemd/system"),
        "machine": platform.machine() if tree.live else tree.text("/proc/sys/kernel/arch"),
        "ostree": tree.exists("/run/ostree-booted"),
        "bootc": tree.exists("/usr/lib/bootc"),
        "secure_boot": secure_boot(tree),
        "nvidia_loaded": tree.exists("/sys/module/nvidia"),
        "nvidia_modules": nvidia_modules(tree),
    }


def platform_facts(tree: Tree) -> dict[str, str]:
    """The facts of the platform as ansible.builtin.setup names them; none where it is no Fedora."""
    facts = gather(tree)
    version = facts["os"].get("VERSION_ID", "")
    if facts["os"].get("ID") != "fedora" or not version.isdigit() or not facts["machine"]:
        return {}
    return {
        "architecture": facts["machine"],
        "distribution": "Fedora",
        "distribution_version": version,
        "distribution_major_version": version,
    }


def secure_boot(tree: Tree) -> bool | None:
    """Return whether the firmware enforces signatures; None on a machine without UEFI variables."""
    try:
        content = tree.path(_SECURE_BOOT).read_bytes()
    except OSError:
        return None
    # Four bytes of attributes, then the value.
    return content[4:5] == b"\x01" if len(content) >= 5 else None


def nvidia_modules(tree: Tree) -> list[dict[str, Any]]:
    """Return NVIDIA's module files of the running kernel, and whether each carries a signature (None: not known).

    They are looked for only where the module is not loaded: a loaded one has passed the kernel's own check.
    """
    if tree.exists("/sys/module/nvidia") or not secure_boot(tree):
        return []
    release = os.uname().release if tree.live else tree.text("/proc/sys/kernel/osrelease") or ""
    base = tree.path(f"/lib/modules/{release}")
    found = []
    for folder in ("extra", "updates", "weak-updates", "kernel/drivers/video"):
        for path in sorted((base / folder).rglob("nvidia.ko*")):
            name = "/" + str(path.relative_to(tree.root))
            found.append({"path": name, "signed": _signed(path)})
    return found


def _signed(path: Path) -> bool | None:
    try:
        if path.suffix == ".ko":
            with path.open("rb") as stream:
                stream.seek(0, os.SEEK_END)
                stream.seek(max(0, stream.tell() - len(_SIGNATURE_MARK)))
                return stream.read() == _SIGNATURE_MARK
        if path.suffix == ".xz":
            return lzma.decompress(path.read_bytes()).endswith(_SIGNATURE_MARK)
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).endswith(_SIGNATURE_MARK)
    except (OSError, lzma.LZMAError, EOFError):
        return None
    return None  # zstd is not in the standard library of the supported releases


def _existing(tree: Tree, name: str) -> Path:
    """Return the nearest folder above a path that is there already: that is where the space will be taken."""
    path: Path = tree.path(name)
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def mount_of(mountinfo: str, path: str) -> tuple[str, str]:
    """Return the mount point that holds a path, and what tells one file system from another.

    Two subvolumes of a btrfs have device numbers of their own and share their free space, so the mounted device counts.
    """
    best = ("/", "/")
    length = -1
    for line in mountinfo.splitlines():
        left, mark, right = line.partition(" - ")
        fields, others = left.split(), right.split()
        if not mark or len(fields) < 5 or len(others) < 2:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[4])
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= length:
            length = len(point)
            best = (point, others[1] if others[1].startswith("/") else point)
    return best


def check_disk(tree: Tree, wanted: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Compare what is to be written with what is free, file system by file system."""
    mountinfo = tree.text("/proc/self/mountinfo") or ""
    needs: dict[str, list[Mapping[str, Any]]] = {}
    places: dict[str, tuple[str, Path]] = {}
    findings = []
    for entry in wanted:
        unless = entry.get("unless_exists")
        if unless and tree.exists(unless):
            continue
        folder = _existing(tree, entry["path"])
        point, key = mount_of(mountinfo, str(folder))
        needs.setdefault(key, []).append(entry)
        places.setdefault(key, (point, folder))
    for key, entries in needs.items():
        point, folder = places[key]
        try:
            status = os.statvfs(folder)
        except OSError as exc:
            findings.append(
                Finding(
                    "disk_unknown", WARNING, f"{folder} cannot be asked for free space: {exc.strerror}", str(folder)
                )
            )
            continue
        free = status.f_bavail * status.f_frsize
        total = sum(entry["bytes"] for entry in entries)
        if total > free:
            parts = ", ".join(f"{_gib(entry['bytes'])} for {entry['purpose']} in {entry['path']}" for entry in entries)
            findings.append(
                Finding(
                    "disk_full",
                    REFUSAL,
                    f"{_gib(total)} are needed on the file system at {point} and {_gib(free)} are free: {parts}. Free "
                    f"{_gib(total - free)}, or choose another folder",
                    point,
                )
            )
    return findings


def _gib(number: int) -> str:
    return f"{number / GIB:.1f} GiB"


def check_system(facts: Mapping[str, Any], wishes: Wishes) -> list[Finding]:
    """Check the distribution and its release, systemd, the architecture and the variant."""
    found: list[Finding] = []
    system = facts["os"]
    name = system.get("PRETTY_NAME") or system.get("ID") or "a system without os-release"
    version = system.get("VERSION_ID", "")
    tested = ", ".join(str(release) for release in sorted(wishes.tested_releases))
    if system.get("ID") != "fedora":
        found.append(
            Finding(
                "not_fedora", REFUSAL, f"the host runs {name}; the collection works on Fedora {tested}", "os-release"
            )
        )
    elif not version.isdigit():
        found.append(
            Finding(
                "release_unknown", REFUSAL, f"VERSION_ID of Fedora is {version!r}, which is no number", "os-release"
            )
        )
    else:
        found += _check_release(int(version), tested, wishes)
    if not facts["systemd"]:
        found.append(
            Finding(
                "no_systemd",
                REFUSAL,
                "systemd is not running the host, and the services are systemd units (in a container, start it with "
                "/sbin/init)",
                "/run/systemd/system",
            )
        )
    if facts["machine"] not in wishes.architectures:
        known = " and ".join(wishes.architectures)
        found.append(
            Finding("architecture", REFUSAL, f"the processor is {facts['machine']}; {known} are supported", "uname")
        )
    elif facts["machine"] != "x86_64" and "rocm" in wishes.backends:
        found.append(
            Finding(
                "rocm_architecture", REFUSAL, f"ROCm exists for x86_64, and the host is {facts['machine']}", "uname"
            )
        )
    if facts["ostree"] or facts["bootc"]:
        kind = "bootc image" if facts["bootc"] else "ostree variant"
        found.append(
            Finding(
                "image_based",
                WARNING,
                f"the host is a {kind}, whose /usr dnf cannot change: build on another host, and set kernel arguments "
                "through the image (kargs.d) or rpm-ostree, which the role gtt_memory does by itself",
                "/run/ostree-booted" if facts["ostree"] else "/usr/lib/bootc",
            )
        )
    return found


def _check_release(number: int, tested: str, wishes: Wishes) -> list[Finding]:
    source = "docs.fedoraproject.org, life cycle: a release ends four weeks after the next but one"
    if number in wishes.tested_releases:
        return []
    if number in wishes.ended_releases:
        return [
            Finding(
                "release_ended",
                WARNING,
                f"Fedora {number} is past its end: its packages moved to archives.fedoraproject.org, no fault of it is "
                f"mended any more, and dnf may find nothing. Update to Fedora {tested}",
                source,
            )
        ]
    if number < min((*wishes.ended_releases, *wishes.tested_releases)):
        return [
            Finding(
                "release_too_old", REFUSAL, f"Fedora {number} is older than any release known here: {tested}", source
            )
        ]
    return [
        Finding(
            "release_untested",
            WARNING,
            f"Fedora {number} is newer than the releases that are tested ({tested}): names and versions of "
            "packages may "
            "differ",
            "the collection's tests",
        )
    ]


def check_secure_boot(facts: Mapping[str, Any], hardware: Mapping[str, Any], wishes: Wishes) -> list[Finding]:
    """Find NVIDIA modules that the kernel will not load for want of a signature that it trusts."""
    if not facts["secure_boot"] or facts["nvidia_loaded"]:
        return []
    if not any(gpu["vendor"] == "nvidia" for gpu in hardware["gpus"]):
        return []
    severity = REFUSAL if "cuda" in wishes.backends else WARNING
    remedy = (
        "sign it and enrol the key (kmodgenca, mokutil --import /etc/pki/akmods/certs/public_key.der, reboot), "
        "or switch "
        "Secure Boot off"
    )
    unsigned = [module["path"] for module in facts["nvidia_modules"] if module["signed"] is False]
    if unsigned:
        return [
            Finding(
                "unsigned_module",
                severity,
                f"Secure Boot is on and {', '.join(unsigned)} carries no signature, so the kernel refuses it: {remedy}",
                "/sys/firmware/efi/efivars",
            )
        ]
    if facts["nvidia_modules"]:
        paths = ", ".join(module["path"] for module in facts["nvidia_modules"])
        return [
            Finding(
                "module_not_trusted",
                WARNING,
                f"Secure Boot is on and {paths} is installed and not loaded; its key may not be enrolled: {remedy}",
                "/sys/firmware/efi/efivars",
            )
        ]
    return []


def check_hardware(hardware: Mapping[str, Any], wishes: Wishes) -> list[Finding]:
    """Turn the problems of gpu_info into findings, by what the chosen backends need."""
    found = []
    chosen = set(wishes.backends) - {"cpu"}
    for problem in hardware["problems"]:
        if problem["id"] == "driver_below_cuda_floor":
            continue  # check_cuda says it
        if problem["id"] in _PUT_RIGHT_LATER:
            severity = NOTE
        elif problem["severity"] == "error":
            severity = REFUSAL if "cuda" in chosen else NOTE
        elif problem["source"].startswith("/proc/"):
            severity = WARNING
        else:
            severity = WARNING if chosen & _CONCERNS.get(problem["id"], chosen) else NOTE
        found.append(Finding(problem["id"], severity, problem["message"], problem["source"]))
    absent = [backend for backend in sorted(chosen) if not any(backend in gpu["backends"] for gpu in hardware["gpus"])]
    found += [
        Finding(
            "no_gpu_for_backend",
            WARNING,
            f"no GPU of the host can be used by the backend {backend}: it can build for others, and a server on "
            "it would "
            "run on the CPU",
            "gpu_info",
        )
        for backend in absent
    ]
    return found


def check_cuda(hardware: Mapping[str, Any], wishes: Wishes) -> list[Finding]:
    """Refuse a driver that is too old for the CUDA that the programs are built with."""
    if not wishes.cuda_version or "cuda" not in wishes.backends:
        return []
    found = []
    for gpu in hardware["gpus"]:
        words = driver_too_old(wishes.cuda_version, gpu["driver_version"] or "") if gpu["driver"] == "nvidia" else None
        if words:
            finding = Finding("driver_too_old", REFUSAL, words, "docs.nvidia.com/deploy/cuda-compatibility")
            if finding not in found:
                found.append(finding)
    return found


def check_plan(hardware: Mapping[str, Any], wishes: Wishes) -> list[Finding]:
    """Compare what the planner wants on each device, and on the host, with what is there."""
    found = [
        Finding(
            "plan_refused" if entry["severity"] == REFUSAL else "plan_unknown",
            entry["severity"],
            entry["text"],
            "the plan",
        )
        for entry in wishes.plan_findings
    ]
    if not wishes.plan:
        return found
    if wishes.gtt_bytes:
        hardware = with_limit(hardware, wishes.gtt_bytes)
    ram = hardware["memory"]["ram_total_bytes"]
    try:
        usable = [
            name for name in wishes.backends if name == "cpu" or any(name in g["backends"] for g in hardware["gpus"])
        ]
        devices = planning_devices(hardware, usable, reserve_bytes=0)
    except ValueError as exc:
        unknown = f"the plan cannot be compared with the host: {exc}"
        return [*found, Finding("memory_unknown", WARNING, unknown, "gpu_info")]
    there = {device["name"]: device["total_bytes"] for device in devices}
    if ram is not None:
        there["host"] = ram
    for name, wanted in sorted(wishes.plan.items()):
        if name not in there:
            known = ", ".join(sorted(there)) or "none"
            found.append(
                Finding(
                    "device_missing",
                    REFUSAL,
                    f"the plan places {_gib(wanted)} on {name}; devices there: {known}",
                    "the plan",
                )
            )
        elif wanted > there[name]:
            found.append(
                Finding(
                    "memory_short",
                    REFUSAL,
                    f"the plan needs {_gib(wanted)} on {name}, which has {_gib(there[name])}: "
                    f"{_gib(wanted - there[name])} are missing",
                    "the plan",
                )
            )
    shared = [gpu for gpu in hardware["gpus"] if gpu["integrated"]]
    wanted = sum(wishes.plan.values())
    if shared and ram is not None and len(devices) == 1 and wanted > ram - default_reserve(ram):
        found.append(
            Finding(
                "memory_reserve",
                REFUSAL if wanted > ram else WARNING,
                f"GPU and system share {_gib(ram)}; the plan takes {_gib(wanted)} of it and leaves less than the "
                "reserve of "
                f"{_gib(default_reserve(ram))}: mapped pages are pinned, and a host without memory left freezes",
                "the plan",
            )
        )
    return found


def check_builds(
    builds: Sequence[str],
    backends: Sequence[str] = (),
    gpu_targets: Sequence[str] = (),
    *,
    allow_known_bad: bool = False,
) -> list[Finding]:
    """Refuse builds of llama.cpp that are known to be bad, and name those that lack known fixes."""
    found = []
    for build in builds:
        number = re.search(r"(?:^|-)b([0-9]{3,6})$", build)
        rows = _known_builds.look_up_name(build, backends, gpu_targets)
        found += [
            Finding(
                "build_known_bad",
                WARNING if allow_known_bad else REFUSAL,
                f"the build {build} is known to be bad: {row.why}; take {row.take}"
                + ("" if allow_known_bad else ", or set llama_build_allow_known_bad to true"),
                row.source,
            )
            for row in rows
            if row.verdict == "bad"
        ]
        if number:
            found += [
                Finding("build_lacks_fixes", WARNING, f"the build {build}: {row.why}", row.source)
                for row in rows
                if row.verdict == "lacks"
            ]
            lacking = [
                entry for entry in ADVISORIES if entry.fixed_in is not None and int(number.group(1)) < entry.fixed_in
            ]
            if lacking:
                names = "; ".join(f"{entry.name}: {entry.effect}, fixed in b{entry.fixed_in}" for entry in lacking)
                found.append(
                    Finding(
                        "build_lacks_fixes",
                        WARNING,
                        f"the build {build} lacks fixes: {names}",
                        "docs/hardware.md, known faults",
                    )
                )
        elif build in OPEN_FAULTS:
            names = "; ".join(f"{entry.name} ({entry.effect}): {entry.avoided_by}" for entry in OPEN_FAULTS[build])
            found.append(
                Finding(
                    "build_open_faults",
                    NOTE,
                    f"the build {build} has open faults, each avoided: {names}",
                    "docs/hardware.md, known faults",
                )
            )
        else:
            found.append(
                Finding(
                    "build_unknown",
                    NOTE,
                    f"the build {build} is not in the table of known fixes, so nothing is known of it",
                    "docs/hardware.md, known faults",
                )
            )
    return found


def judge(tree: Tree, hardware: Mapping[str, Any], wishes: Wishes) -> list[dict[str, str]]:
    """Return all findings, refusals first."""
    facts = gather(tree)
    found = [
        *check_system(facts, wishes),
        *check_cuda(hardware, wishes),
        *check_secure_boot(facts, hardware, wishes),
        *check_plan(hardware, wishes),
        *check_disk(tree, wishes.disk),
        *check_hardware(hardware, wishes),
        *check_builds(
            wishes.builds,
            wishes.backends,
            wishes.gpu_targets or [gpu["gfx_target"] for gpu in hardware["gpus"] if gpu["gfx_target"]],
            allow_known_bad=wishes.allow_known_bad,
        ),
    ]
    return [asdict(finding) for finding in sorted(found, key=lambda finding: _ORDER.index(finding.severity))]


def refused(findings: Sequence[Mapping[str, str]], strict: bool) -> bool:
    stops = {REFUSAL, WARNING} if strict else {REFUSAL}
    return any(finding["severity"] in stops for finding in findings)


def report(findings: Sequence[Mapping[str, str]], strict: bool) -> str:
    """Return the findings as a text for a person: one line each, with what it rests on."""
    if not findings:
        return "preflight: nothing found"
    counts = []
    for severity in _ORDER:
        number = sum(finding["severity"] == severity for finding in findings)
        if number:
            counts.append(f"{number} {severity}{'s' if number > 1 else ''}")
    verdict = "refused" if refused(findings, strict) else "passed"
    because = ", warnings count as refusals (preflight_strict)" if strict else ""
    lines = [f"preflight {verdict}: {', '.join(counts)}{because}"]
    lines += [f"  {f['severity'].upper():8} {f['id']}: {f['message']} [{f['source']}]" for f in findings]
    return "\n".join(lines)
