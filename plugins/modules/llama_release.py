#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install an artifact as a release, switch to it, and remove the oldest ones."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_release
short_description: Install an artifact of llama.cpp as a release and switch to it
version_added: 1.0.0
author:
  - llamafleet contributors (@llamafleet)
description:
  - Unpacks an artifact to C(releases/<fingerprint>) below O(root), where it appears by one rename after every file was
    compared with the manifest and C(llama-server) was run. Then C(current) is pointed at it, atomically.
  - A damaged archive, another architecture, a C library that is too old, missing libraries and a GPU backend that
    names no GPU, or another one than the host's hardware has, are refused before anything is switched.
  - The archive is copied from the controller only to hosts that do not have the release.
  - Where SELinux is on, the files get the types of their place (C(restorecon)) before the release appears.
  - C(devices.json) beside the manifest lists the devices that C(llama-server) named.
  - A release is never written over and never removed while a process runs from it.
options:
  fingerprint:
    description:
      - Name of the build.
      - An empty one is refused. In check mode it predicts a change, because a host without compilers cannot name the
        build that it would make.
    type: str
    required: true
  src:
    description: The artifact on the controller. It may be missing where the host has the release.
    type: path
    default: ''
  root:
    description: Folder for C(releases) and C(current).
    type: path
    default: /opt/llamafleet
  activate:
    description: Whether C(current) points at the release afterwards.
    type: bool
    default: true
  keep:
    description: Releases that stay. The current one and those that processes run from stay in any case.
    type: int
    default: 3
  allow_software_devices:
    description: Accept a Vulkan device that computes on the processor. For tests.
    type: bool
    default: false
  environment:
    description: Environment variables of C(llama-server --list-devices), such as C(GGML_VK_VISIBLE_DEVICES).
    type: dict
    default: {}
  archive:
    description: The artifact as the action plugin brought it to the host; it sets this.
    type: path
    default: ''
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
seealso:
  - module: llamafleet.turboquant.llama_build
"""

EXAMPLES = r"""
- name: Install what was built
  llamafleet.turboquant.llama_release:
    fingerprint: "{{ build.fingerprint }}"
    src: "{{ build.artifact }}"
  become: true

- name: Go back to an earlier release
  llamafleet.turboquant.llama_release:
    fingerprint: 4f0d2c9a3b7e8d1f5a6b7c8d9e0f1a2b
  become: true
"""

RETURN = r"""
fingerprint:
  description: Name of the build.
  type: str
  returned: success
release:
  description: Folder of the release.
  type: str
  returned: success
previous:
  description: Fingerprint of the release that was current before; empty where there was none.
  type: str
  returned: success
releases:
  description: Fingerprints of the releases on the host, newest first.
  type: list
  elements: str
  returned: success
pruned:
  description: Fingerprints of the releases that were removed.
  type: list
  elements: str
  returned: success
manifest:
  description: Manifest of the release.
  type: dict
  returned: when the release is there
devices:
  description: Devices that the release named when it was installed.
  type: list
  elements: dict
  returned: when the release is there
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _artifact, _build_job, _hardware, _release

DEVICES = "devices.json"
# There where the kernel enforces a policy, or would.
SELINUX = Path("/sys/fs/selinux/enforce")
# A GPU driver that is loaded for the first time may take this long to answer.
PATIENCE = 120


class ReleaseError(ValueError):
    """The release cannot be installed."""


def ask(program: Path, argument: str, environment: dict[str, str]) -> str:
    """Return what llama-server prints for an argument."""
    try:
        done = subprocess.run(
            [str(program), argument],
            env={"PATH": _build_job.STANDARD_PATH, "LC_ALL": "C", "GGML_NO_BACKTRACE": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ReleaseError(f"{program.name} {argument} did not answer within {PATIENCE} s") from exc
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        raise ReleaseError(
            f"{program.name} {argument} of the new release ended with exit code {done.returncode}: "
            f"{text.strip()[-600:]}"
        )
    return text


def try_out(staging: Path, manifest: dict[str, Any], params: dict[str, Any]) -> list[str]:
    """Run the unpacked llama-server and write down what it says; refuse it where it cannot serve as meant.

    Return what a person should know of its devices.
    """
    program = staging / "bin" / "llama-server"
    # A shell's way of asking: the loader names every library that is not there.
    missing, _stray = _build_job.linked_libraries(program, staging / "none")
    if missing:
        wanted = " ".join(f"'{name}()(64bit)'" for name in missing)
        folders = [folder for folder in manifest["requirements"].get("run_path", []) if not Path(folder).is_dir()]
        lacking = f"; its builder has libraries in {', '.join(folders)}, and this host does not" if folders else ""
        raise ReleaseError(
            f"this host lacks {', '.join(missing)}, which llama-server needs: those of GPUs are brought by build.yml "
            "(role toolchain, entry point runtime, which adds the vendor's repository), others on Fedora by "
            f"`dnf install {wanted}`{lacking}"
        )
    environment = {str(key): str(value) for key, value in params["environment"].items()}
    _release.parse_version(ask(program, "--version", environment))
    if re.search(r"^-.*--model\b", ask(program, "--help", environment), re.MULTILINE) is None:
        raise ReleaseError("llama-server --help lists no option --model, so its options cannot be read")
    devices = _release.parse_devices(ask(program, "--list-devices", environment))
    refused = _release.device_refusals(manifest["backends"], devices, params["allow_software_devices"])
    warned: list[str] = []
    if not refused and set(manifest["backends"]) & set(_release.GPU_BACKENDS) and not params["allow_software_devices"]:
        narrowed = any(name.endswith("_VISIBLE_DEVICES") for name in environment)
        refused, warned = _release.compare_devices(manifest["backends"], devices, _hardware.read_hardware(), narrowed)
    if refused:
        raise ReleaseError("; ".join(refused))
    _build_job.write_json(staging / DEVICES, devices)
    (staging / DEVICES).chmod(0o644)
    return warned


def label(folder: Path) -> None:
    """Give the files the SELinux types that belong to their place, bin_t and lib_t below /opt.

    A folder inherits its type from the one in which it is made, and systemd may not start a file of another type than
    bin_t (203/EXEC). Where SELinux is off there is nothing to do.
    """
    if not SELINUX.exists():
        return
    restorecon = shutil.which("restorecon", path=_build_job.STANDARD_PATH)
    if restorecon is None:
        raise ReleaseError(
            "SELinux is on, but there is no restorecon to label the release with: dnf install policycoreutils"
        )
    done = subprocess.run([restorecon, "-RF", str(folder)], capture_output=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"restorecon {folder}: {done.stderr.decode('utf-8', 'replace').strip()}")


def install(root: Path, params: dict[str, Any]) -> list[str]:
    """Unpack, try out, and let the release appear; return what a person should know of its devices."""
    archive = Path(params["archive"])
    fingerprint = params["fingerprint"]
    releases = root / "releases"
    manifest = _artifact.read_manifest(archive)
    refused = _artifact.refusals(manifest, _artifact.read_host())
    if refused:
        raise ReleaseError(f"the artifact {fingerprint} cannot run on this host: {'; '.join(refused)}")
    need = 2 * sum(entry["size"] for entry in manifest["files"].values())
    releases.mkdir(parents=True, exist_ok=True)
    found = os.statvfs(releases)
    free = found.f_bavail * found.f_frsize
    if free < need:
        raise ReleaseError(
            f"the release takes up to {need // 1048576} MiB below {releases}, and {free // 1048576} MiB are free "
            "there: "
            f"free {(need - free) // 1048576 + 1} MiB, or keep fewer releases"
        )
    staging = _artifact.unpack(archive, fingerprint, releases)
    try:
        warned = try_out(staging, manifest, params)
        # Before it appears: a release that is there is whole, its labels included.
        label(staging)
        _artifact.publish(staging, releases, fingerprint)
    finally:
        if staging.exists():
            shutil.rmtree(staging)
    return warned


def main() -> None:
    """Bring the host to the wanted release."""
    # A hardened login's umask (027, 077) would cut the modes of folders that the service's user must reach.
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "fingerprint": {"type": "str", "required": True},
            "src": {"type": "path", "default": ""},
            "root": {"type": "path", "default": "/opt/llamafleet"},
            "activate": {"type": "bool", "default": True},
            "keep": {"type": "int", "default": 3},
            "allow_software_devices": {"type": "bool", "default": False},
            "environment": {"type": "dict", "default": {}},
            "archive": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    root = Path(params["root"])
    releases = root / "releases"
    try:
        fingerprint = _artifact.check_fingerprint(params["fingerprint"])
        release = releases / fingerprint
        present = release.is_dir()
        previous = _artifact.current_release(root) or ""
        if present:
            _artifact.check_release(release)
        elif not params["archive"] and not module.check_mode:
            # The action plugin comes again with the archive.
            module.exit_json(changed=False, needs_archive=True, release=str(release))
        old = _artifact.left_overs(releases)
        names = _artifact.find_releases(root)
        after = fingerprint if params["activate"] else previous
        gone = _artifact.to_prune(
            names if present else [fingerprint, *names],
            params["keep"],
            [fingerprint, after, *_artifact.running_releases(root)],
        )
        switching = params["activate"] and previous != fingerprint
        if not module.check_mode:
            for path in old:
                shutil.rmtree(path)
            for warning in [] if present else install(root, params):
                module.warn(warning)
            if switching:
                _artifact.switch(root, fingerprint)
            for name in gone:
                shutil.rmtree(releases / name)
        answer: dict[str, Any] = {
            "changed": bool(old) or not present or switching or bool(gone),
            "release": str(release),
            "previous": previous,
            "installed": not present,
            "switched": switching,
            "pruned": gone,
            "releases": _artifact.find_releases(root),
            "needs_archive": not present and module.check_mode,
            "diff": {
                "before": {"current": previous, "releases": names},
                "after": {
                    "current": after,
                    "releases": [name for name in (names if present else [fingerprint, *names]) if name not in gone],
                },
            },
        }
        if release.is_dir():
            answer["manifest"] = _artifact.check_release(release)
            answer["devices"] = json.loads((release / DEVICES).read_text(encoding="utf-8"))
    except (ValueError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
