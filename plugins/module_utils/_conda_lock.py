# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks of conda toolchains: how one is solved, how it is written, and why one is not of a planned toolchain.

Private to the collection: may change at any time, not for use from elsewhere.

What is relied on of micromamba was read in mamba-org/mamba, commit 03564bf48 of 2026-07-24, which is after its release
2.8.1. The pinned program is 2.9.0, whose source was not at hand; what it answers is therefore checked line by line.

- C(create --dry-run --json) downloads no package, and prints one JSON object: C(actions.LINK) is a list of packages,
  each with C(url), and with C(sha256) where the channel states it (C(MTransaction.log_json) in
  libmamba/src/core/transaction.cpp, C(to_json) in libmamba/src/specs/package_info.cpp).
- Where it fails it ends with 1 and still prints an object. C(solver_problems) are sentences
  (C(write_unsolvable_json_if_needed) in libmamba/src/api/utils.cpp), and C(log_history) is what it would have logged,
  each with C(level) and C(message) (libmamba/src/core/output.cpp).
- C(--file) of a lock passes over comments and over all that stands before the line C(@EXPLICIT)
  (C(file_specs_hook) in libmamba/src/api/install.cpp). After an address it takes C(#) with 32 digits for an md5,
  C(#) or C(#sha256:) with 64 for a sha256, and passes over everything else without a word (C(PackageInfo::from_url)).
- What it takes a machine for can be told by C(CONDA_OVERRIDE_GLIBC), C(_CUDA) and C(_ARCHSPEC); an empty C(_CUDA) is a
  machine without one (libmamba/src/core/virtual_packages.cpp).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

DEFAULT_CHANNEL = "conda-forge"

# An address of a package, with its subfolder, name, version and build; conda's file names are NAME-VERSION-BUILD.
_PACKAGE = re.compile(
    r"(?P<base>[a-z][a-z0-9+]*://\S+)/(?P<subdir>[^/\s]+)/"
    r"(?P<name>[^/\s]+)-(?P<version>[^-/\s]+)-(?P<build>[^-/\s]+)\.(?:conda|tar\.bz2)"
)
# What micromamba looks at after an address; a digest of another form is no digest to it.
_DIGEST = re.compile(r"[0-9a-f]{32}|(?:sha256:)?[0-9a-f]{64}")
# user@host or user:password@host, and the token of a private channel.
_SECRET = re.compile(r"://[^/\s]*@|://[^/\s]+/t/[^/\s]+(?:/|$)")
_SEVERE = ("error", "critical")


def check_channel(channel: str) -> str:
    """Return a channel without a slash at its end, or raise ValueError where none can be locked from it."""
    if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)*|[a-z][a-z0-9+]*://\S+", channel):
        raise ValueError(
            f"conda_channel is a name such as {DEFAULT_CHANNEL} or an address such as "
            f"https://mirror.example/conda-forge, got {channel!r}"
        )
    if _SECRET.search(channel):
        raise ValueError(
            "conda_channel is an address with a user or a token in it, which would be written into the lock; have the "
            "mirror let the hosts in by their own addresses"
        )
    return channel.rstrip("/")


def lock_name(platform: str, backends: Iterable[str], cuda_version: str) -> str:
    """Return the file name of the lock of one kind of toolchain.

    It ends with .txt, because Ansible reads a folder of an inventory file by file and passes over those alone.
    """
    more = [f"cuda{cuda_version}" if name == "cuda" else name for name in backends if name != "cpu"]
    return f"conda-{platform}-{'-'.join(more or ['cpu'])}.txt"


def solve_arguments(conda: Mapping[str, Any]) -> list[str]:
    """Return what micromamba is to be called with, so that it names the packages and downloads none."""
    return [
        *("create", "--dry-run", "--json", "--yes", "--no-rc"),
        *("--override-channels", "--channel", conda["channel"], "--platform", conda["platform"]),
        *conda["specs"],
    ]


def solve_environment(machine: str, glibc: str, cuda_version: str) -> dict[str, str]:
    """Return what the solver is to take a host for: what all hosts of the lock are, not the one that happens to ask.

    cuda-version wants a driver of its own CUDA or newer, and the solver's idea of the driver's CUDA comes from
    /usr/local/cuda or nvidia-smi of the host that asks. Which driver runs what was planned before.
    """
    return {
        "CONDA_OVERRIDE_ARCHSPEC": machine,
        "CONDA_OVERRIDE_GLIBC": glibc,
        "CONDA_OVERRIDE_CUDA": cuda_version,
    }


def _answer(text: str, errors: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError as error:
        said = errors.strip() or text.strip() or "nothing"
        raise ValueError(f"micromamba did not answer with JSON ({error}); it said: {said[-2000:]}") from error
    if not isinstance(answer, Mapping):
        raise ValueError(f"micromamba's answer is a JSON object, got {type(answer).__name__}")
    return answer


def _why(answer: Mapping[str, Any], errors: str) -> str:
    """Return in micromamba's own words why it names no packages."""
    problems = [str(problem) for problem in answer.get("solver_problems") or []]
    if problems:
        return "; ".join(problems)
    history = [record for record in answer.get("log_history") or [] if isinstance(record, Mapping)]
    logged = [str(record.get("message")).strip() for record in history if record.get("level") in _SEVERE]
    return "; ".join(logged) or errors.strip()[-2000:] or "it said nothing more"


def _of_channel(base: str, channel: str) -> bool:
    """Say whether an address lies in a channel; of a named channel the server is micromamba's to know."""
    if "://" in channel:
        return base == channel
    return re.fullmatch(rf"https://[^/\s]+/{re.escape(channel)}", base) is not None


def _entry(package: Any, conda: Mapping[str, Any]) -> str:
    """Return the line of one package of an answer, or raise ValueError."""
    if not isinstance(package, Mapping) or not isinstance(package.get("url"), str):
        raise ValueError(f"micromamba names a package by its url, got {package!r}")
    url, channel = package["url"], conda["channel"]
    if _SECRET.search(url):
        raise ValueError(
            f"the address of {package.get('name')} has a user or a token in it, which would be written into the lock"
        )
    found = _PACKAGE.fullmatch(url)
    if found is None:
        raise ValueError(f"{url!r} is not the address of a package: CHANNEL/PLATFORM/NAME-VERSION-BUILD.conda is")
    if not _of_channel(found["base"], channel):
        raise ValueError(f"{found['name']} is from {found['base']}, and only {channel} was asked")
    digest = package.get("sha256") or ""
    if not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
        raise ValueError(
            f"{found['name']} has no sha256 but {digest!r}: the channel {channel} states none for {url}, and what "
            "cannot be verified is not locked"
        )
    return f"{url}#sha256:{digest}"


def lock_of(text: str, conda: Mapping[str, Any], errors: str = "") -> str:
    """Return the lock that an answer of micromamba describes, or raise ValueError where it is none to install from.

    Args:
        text: what C(micromamba) printed, called with the plan's C(solve_arguments).
        conda: C(conda) of a plan: channel, platform and specs.
        errors: what it wrote to its standard error, for the message.
    """
    answer = _answer(text, errors)
    actions = answer.get("actions")
    packages = actions.get("LINK") if isinstance(actions, Mapping) else None
    if answer.get("success") is not True or not isinstance(packages, list) or not packages:
        raise ValueError(
            f"micromamba found no packages for {', '.join(conda['specs'])} on {conda['platform']} in "
            f"{conda['channel']}: {_why(answer, errors)}"
        )
    entries = sorted(_entry(package, conda) for package in packages)
    lines = [
        f"# The toolchain {', '.join(conda['specs'])}",
        f"# of {conda['channel']}, as playbooks/conda_lock.yml found it; -e toolchain_conda_lock_renew=true renews it.",
        f"# platform: {conda['platform']}",
        "@EXPLICIT",
        *entries,
    ]
    problems = conda_lock_problems(lines, conda)
    if problems:
        raise ValueError(f"micromamba's answer is not the toolchain that was asked for: {'; '.join(problems)}")
    return "".join(f"{line}\n" for line in lines)


def conda_lock_problems(lines: Iterable[str], conda: Mapping[str, Any]) -> list[str]:
    """Say why a lock is not one that the toolchain of a plan can be installed from; nothing where it is.

    Args:
        lines: the lock, as this module or C(micromamba env export --explicit) writes it.
        conda: C(conda) of a plan: platform and specs.

    Returns:
        Sentences, each with the package, what the lock says of it and what the plan wants.
    """
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    begin = entries.index("@EXPLICIT") if "@EXPLICIT" in entries else -1
    problems = [] if begin >= 0 else ["it has no line @EXPLICIT"]
    problems += [f"{entry!r} stands before @EXPLICIT, where nothing is installed" for entry in entries[: max(begin, 0)]]
    versions: dict[str, tuple[str, str]] = {}
    for entry in entries[begin + 1 :]:
        address, _mark, digest = entry.partition("#")
        found = _PACKAGE.fullmatch(address)
        if found is None or not _DIGEST.fullmatch(digest):
            problems.append(
                f"{entry!r} is not the address of a package that ends with # and a digest: 32 digits of an md5, or 64 "
                "of a sha256, with sha256: before them or not"
            )
        elif found["subdir"] not in (conda["platform"], "noarch"):
            problems.append(f"{found['name']} is for {found['subdir']}, this host is {conda['platform']}")
        elif found["name"] in versions:
            problems.append(f"{found['name']} is there twice, as {versions[found['name']][0]} and {found['version']}")
        else:
            versions[found["name"]] = found["version"], found["build"]
    for spec in conda["specs"]:
        name, wanted, build = [*spec.split("="), "", ""][:3]
        if name not in versions:
            problems.append(f"{name} is missing")
            continue
        is_version, is_build = versions[name]
        if wanted not in ("", "*") and not f"{is_version}.".startswith(f"{wanted}."):
            problems.append(f"{name} is {is_version}, the plan of this host has {wanted}")
        if build and is_build != build:
            problems.append(f"{name} is built for {is_build}, the plan of this host has {build}")
    return problems
