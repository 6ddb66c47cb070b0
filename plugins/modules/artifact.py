#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack, verify, unpack and prune artifacts by hand."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact
short_description: Pack, verify, unpack or prune artifacts of llama.cpp
version_added: 1.0.0
author:
  - llamafleet contributors (@llamafleet)
description:
  - Works on the archives that M(llamafleet.turboquant.llama_build) makes, with files that are on the host.
  - M(llamafleet.turboquant.llama_release) is what installs an artifact and switches to it; this module serves mirrors,
    air-gapped sites and tests.
options:
  operation:
    description:
      - V(verify) reads the whole archive, compares every file with the manifest, and compares architecture, C library
        and instruction sets with this host unless O(any_host) is set.
      - V(pack) writes the folder O(src), which holds a C(manifest.json) without C(files), to O(dest).
      - V(unpack) verifies and unpacks O(src) to the folder O(dest), which appears complete or not at all.
      - V(prune) removes the oldest archives in the folder O(src) beyond O(keep).
    type: str
    required: true
    choices: [pack, verify, unpack, prune]
  src:
    description: Archive or folder on the host.
    type: path
    required: true
  dest:
    description: Archive or folder that is made.
    type: path
  fingerprint:
    description: Refuse an archive of another build.
    type: str
    default: ''
  any_host:
    description: Accept an artifact that cannot run on this host, on a mirror for instance.
    type: bool
    default: false
  keep:
    description: Archives that stay when pruning.
    type: int
    default: 5
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
"""

EXAMPLES = r"""
- name: See that the artifact came through the air gap whole
  llamafleet.turboquant.artifact:
    operation: verify
    src: /srv/artifacts/4f0d2c9a3b7e8d1f5a6b7c8d9e0f1a2b.tar.gz
    any_host: true
"""

RETURN = r"""
manifest:
  description: The manifest of the artifact.
  type: dict
  returned: when one artifact was read or written
pruned:
  description: Archives that were removed.
  type: list
  elements: str
  returned: when pruning
"""

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _artifact


def checked(params: dict[str, Any]) -> dict[str, Any]:
    """Verify the archive, and that this host can run it."""
    manifest = _artifact.verify(Path(params["src"]), params["fingerprint"])
    refused = [] if params["any_host"] else _artifact.refusals(manifest, _artifact.read_host())
    if refused:
        raise _artifact.ArtifactError(f"{params['src']} cannot run on this host: {'; '.join(refused)}")
    return manifest


def pack(params: dict[str, Any], check_mode: bool) -> tuple[bool, dict[str, Any]]:
    """Write an archive, unless the same one is there."""
    source, destination = Path(params["src"]), Path(params["dest"])
    try:
        manifest = json.loads((source / _artifact.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as exc:
        raise _artifact.ArtifactError(f"{source} has no {_artifact.MANIFEST} that can be read: {exc}") from exc
    if not isinstance(manifest, dict):
        raise _artifact.ArtifactError(f"{source / _artifact.MANIFEST} holds no mapping")
    manifest["files"] = _artifact.list_files(source)
    _artifact.check_manifest(manifest)
    if destination.exists() and _artifact.verify(destination) == manifest:
        return False, manifest
    if not check_mode:
        _artifact.pack(source, manifest, destination)
    return True, manifest


def unpack(params: dict[str, Any], check_mode: bool) -> tuple[bool, dict[str, Any]]:
    """Unpack an archive, unless the folder holds it already."""
    destination = Path(params["dest"])
    if destination.exists():
        present = _artifact.check_release(destination)
        if present["fingerprint"] != _artifact.read_manifest(Path(params["src"]))["fingerprint"]:
            raise _artifact.ArtifactError(
                f"{destination} holds the build {present['fingerprint']}: it is kept as it is"
            )
        return False, present
    manifest = checked(params)
    if not check_mode:
        _artifact.unpack(Path(params["src"]), manifest["fingerprint"], destination.parent).rename(destination)
    return True, manifest


def prune(params: dict[str, Any], check_mode: bool) -> list[str]:
    """Remove the oldest archives of a folder."""
    folder = Path(params["src"])
    found = sorted(folder.glob(f"*{_artifact.SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    gone = _artifact.to_prune([path.name for path in found], params["keep"], [])
    if not check_mode:
        for name in gone:
            (folder / name).unlink()
    return gone


def main() -> None:
    """Run one operation."""
    module = AnsibleModule(
        argument_spec={
            "operation": {"type": "str", "required": True, "choices": ["pack", "verify", "unpack", "prune"]},
            "src": {"type": "path", "required": True},
            "dest": {"type": "path"},
            "fingerprint": {"type": "str", "default": ""},
            "any_host": {"type": "bool", "default": False},
            "keep": {"type": "int", "default": 5},
        },
        required_if=[("operation", "pack", ["dest"]), ("operation", "unpack", ["dest"])],
        supports_check_mode=True,
    )
    operation = module.params["operation"]
    answer: dict[str, Any] = {"changed": False}
    try:
        if operation == "verify":
            answer["manifest"] = checked(module.params)
        elif operation == "prune":
            answer["pruned"] = prune(module.params, module.check_mode)
            answer["changed"] = bool(answer["pruned"])
        else:
            work = pack if operation == "pack" else unpack
            answer["changed"], answer["manifest"] = work(module.params, module.check_mode)
    except (ValueError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
