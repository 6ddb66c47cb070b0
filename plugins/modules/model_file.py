#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_file
short_description: Keep model files of known sha256 in a directory
version_added: 1.0.0
description:
  - Brings the listed model files (GGUF) into a directory and keeps them there, each proved by its sha256.
  - An incomplete file is named after its digest and ends in C(.partial). A later run goes on where it stopped
    (HTTP Range), starts over when the server sends the whole file instead of the rest, and renames it only when the
    digest is right. A file whose digest in the list changes is replaced at that moment and not before.
  - Files on the controller are sent in chunks, so an interrupted copy goes on as well, and not at all
    when the host already has a file of that digest.
  - A file is read and hashed once, and only then gets its name; afterwards its size and modification time are compared
    with a record (C(.verified.json) in the directory) unless O(verify=always).
  - While it works, how far it is appears about every ten seconds.
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  directory:
    description: Where the files are kept. Made with mode 0755 when it is missing.
    type: path
    default: /var/lib/llamafleet/models
  files:
    description:
      - The files that must be there. Each takes either O(files[].url), O(files[].path) or O(files[].parts).
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the file in the directory; no folder in it.
        type: str
        required: true
      url:
        description:
          - Address of the file, V(https://...), V(http://...) or V(hf:OWNER/REPO/FILE[@REVISION]).
        type: str
      path:
        description: Absolute path of the file on the controller.
        type: str
      sha256:
        description: The file's SHA-256 in hexadecimal. Required, since an unproved model file can take over the server.
        type: str
        required: true
      bytes:
        description: The file's size. With it the space is checked before anything is written.
        type: int
      token:
        description: Sent as a bearer token to the address, and to no other host it redirects to.
        type: str
      parts:
        description: Pieces that make the file when they are joined in this order.
        type: list
        elements: dict
        suboptions:
          url:
            description: Address of the piece, as in O(files[].url).
            type: str
          path:
            description: Absolute path of the piece on the controller.
            type: str
          sha256:
            description: SHA-256 of the piece.
            type: str
            required: true
          bytes:
            description: Size of the piece. Required for a piece with an address.
            type: int
          token:
            description: As in O(files[].token).
            type: str
  verify:
    description:
      - V(changed) hashes a file that the record does not know or whose size or modification time differs from it.
      - V(always) hashes every file on each run; that reads all of it, about a minute for 17 GB from an NVMe disk.
    type: str
    choices: [changed, always]
    default: changed
  prune:
    description:
      - Remove files that this module placed and that are no longer listed. Files put there by other means stay.
      - Incomplete files that belong to no listed file are removed in any case.
    type: bool
    default: false
  reserve_mib:
    description: Space that must stay free on the file system afterwards, in MiB.
    type: int
    default: 1024
  hf_endpoint:
    description: Server behind V(hf:) addresses, for a mirror inside the site.
    type: str
    default: https://huggingface.co
  hf_token:
    description: Token for V(hf:) addresses (gated repositories). Given to no other address.
    type: str
  timeout:
    description: Seconds without a byte after which a connection is given up and made again.
    type: int
    default: 60
  retries:
    description: How many connections in a row may bring nothing before the download fails.
    type: int
    default: 5
  lock_timeout:
    description: Seconds to wait for another run that works in the same directory.
    type: int
    default: 3600
  chunk_mib:
    description:
      - Size of the first chunk in which a file of the controller is sent, in MiB. A next one is twice as large while
        the one before took less than four seconds, up to 1024 MiB. What an interrupted run has to send again is one
        chunk.
      - One chunk lies in the temporary folder of the controller and in that of the host while it is sent. They stop
        growing where the controller's has no room for those of all forks, and are this size again where one does not
        arrive.
    type: int
    default: 128
  phase:
    description: Which step to do. Set by the action plugin of the same name, which calls the module once for each step.
    type: str
    choices: [plan, apply, append, status]
    default: apply
  chunk:
    description: For O(phase=append), set by the action plugin.
    type: dict
author:
  - llamafleet contributors (@llamafleet)
"""

EXAMPLES = r"""
- name: One model from Hugging Face, one from the controller
  llamafleet.turboquant.model_file:
    files:
      - name: gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf
        url: hf:unsloth/gemma-4-26B-A4B-it-GGUF/gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf@c099eb48e663
        sha256: "{{ gemma_sha256 }}"
        bytes: 17010980576
      - name: smollm2.gguf
        path: /srv/models/SmolLM2-135M-Instruct.Q4_1.gguf
        sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  become: true
"""

RETURN = r"""
files:
  description: Each listed file and what was done with it.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The file's name.
      type: str
      returned: always
    path:
      description: Where it lies.
      type: str
      returned: always
    sha256:
      description: Its digest.
      type: str
      returned: always
    bytes:
      description: Its size, none in check mode when it is not known beforehand.
      type: int
      returned: always
    action:
      description: V(kept), V(verified) (its bytes were read and are right), V(placed) or V(replaced).
      type: str
      returned: always
removed:
  description: Names of incomplete and of no longer listed files that were removed.
  returned: success
  type: list
  elements: str
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _model_file as mf

PART_SPEC = {
    "url": {"type": "str"},
    "path": {"type": "str"},
    "sha256": {"type": "str", "required": True},
    "bytes": {"type": "int"},
    "token": {"type": "str", "no_log": True},
}
ARGUMENT_SPEC: dict[str, Any] = {
    "directory": {"type": "path", "default": "/var/lib/llamafleet/models"},
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": dict(
            PART_SPEC,
            name={"type": "str", "required": True},
            parts={"type": "list", "elements": "dict", "options": PART_SPEC},
        ),
    },
    "verify": {"type": "str", "choices": ["changed", "always"], "default": "changed"},
    "prune": {"type": "bool", "default": False},
    "reserve_mib": {"type": "int", "default": 1024},
    "hf_endpoint": {"type": "str", "default": mf.HF_ENDPOINT},
    "hf_token": {"type": "str", "no_log": True},
    "timeout": {"type": "int", "default": 60},
    "retries": {"type": "int", "default": 5},
    "lock_timeout": {"type": "int", "default": 3600},
    "chunk_mib": {"type": "int", "default": 128},
    "phase": {"type": "str", "choices": ["plan", "apply", "append", "status"], "default": "apply"},
    "chunk": {"type": "dict"},
}


def survey(directory: Path, wanted: list[mf.Wanted], params: dict[str, Any]) -> dict[str, Any]:
    """What the directory looks like next to the list, without reading the files' bytes."""
    record = mf.Record(directory)
    states = {item.name: mf.state_of(directory, item, record, params["verify"] == "always") for item in wanted}
    removed = mf.partial_files(directory, wanted)
    if params["prune"]:
        removed += mf.prunable(directory, wanted, record)
    return {"states": states, "removed": removed, "record": record}


def size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def outcome(directory: Path, wanted: list[mf.Wanted], actions: dict[str, str], removed: list[str]) -> dict[str, Any]:
    files = []
    before, after = [], []
    for item in wanted:
        action = actions[item.name]
        path = directory / item.name
        files.append(
            {
                "name": item.name,
                "path": str(path),
                "sha256": item.sha256,
                "bytes": size_of(path) if action in ("kept", "verified") else (item.size or size_of(path)),
                "action": action,
            }
        )
        line = f"{item.name} sha256:{item.sha256}\n"
        if action in ("kept", "verified"):
            before.append(line)
        elif action == "replaced":
            before.append(f"{item.name} of another digest\n")
        after.append(line)
    before += [f"{name}\n" for name in removed]
    changed = bool(removed) or any(action in ("placed", "replaced") for action in actions.values())
    where = str(directory)
    diff = {"before": "".join(before), "after": "".join(after), "before_header": where, "after_header": where}
    return {"changed": changed, "files": files, "removed": removed, "diff": diff}


def apply(module: AnsibleModule, directory: Path, wanted: list[mf.Wanted]) -> dict[str, Any]:
    params = module.params
    report = mf.Progress(directory)
    reserve = params["reserve_mib"] << 20
    found = survey(directory, wanted, params)
    record: mf.Record = found["record"]
    actions: dict[str, str] = {}
    needs_copy: list[dict[str, Any]] = []
    try:
        to_write = []
        for item in wanted:
            state = found["states"][item.name]
            if state == "unverified":
                digest = mf.hash_file(directory / item.name, mf.quiet if module.check_mode else report).hexdigest()
                if digest == item.sha256:
                    state = "verified"
                    if not module.check_mode:
                        record.note(directory / item.name, digest)
                else:
                    state = "changed"
            actions[item.name] = {"present": "kept", "verified": "verified", "changed": "replaced", "absent": "placed"}[
                state
            ]
            if state in ("changed", "absent"):
                to_write.append(item)
        # Partial files that nobody will finish give their space back before it is counted.
        if not module.check_mode:
            for name in found["removed"]:
                (directory / name).unlink()
                record.forget(name)
        names = ", ".join(item.name for item in to_write)
        mf.check_space(directory, names, mf.space_needed(directory, to_write), reserve)
        if not module.check_mode:
            for item in to_write:
                if item.from_controller:
                    partial = mf.finish_copy(directory, item, report)
                    if partial is None:
                        have = directory / item.partial
                        needs_copy.append({"name": item.name, "offset": size_of(have) or 0})
                        continue
                else:
                    partial = mf.fetch(directory, item, report, params["timeout"], params["retries"], reserve)
                mf.place(directory, item, partial, record)
    finally:
        if not module.check_mode:
            report.close()
    result = outcome(directory, wanted, actions, found["removed"])
    result["needs_copy"] = needs_copy
    return result


def settle(module: AnsibleModule, directory: Path, wanted: list[mf.Wanted]) -> dict[str, Any] | None:
    """Do what takes a moment; None where it would take longer, and where another run holds the directory."""
    params = module.params
    if not mf.is_short(directory, wanted, survey(directory, wanted, params)["states"]):
        return None
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        with mf.locked(directory, 0):
            # As it is now that nobody else works on it.
            short = mf.is_short(directory, wanted, survey(directory, wanted, params)["states"])
            return apply(module, directory, wanted) if short else None
    except mf.Held:
        return None


def main() -> None:
    # A hardened login's umask (027, 077) would cut the modes of folders that the service's user must reach.
    os.umask(0o022)
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    directory = Path(params["directory"])
    phase = params["phase"]
    try:
        wanted = mf.parse_files(params["files"], params["hf_endpoint"], params["hf_token"])
        if phase == "status":
            try:
                progress = (directory / mf.PROGRESS_NAME).read_text(encoding="utf-8")
            except OSError:
                progress = ""
            module.exit_json(changed=False, progress=progress)
        if phase == "plan":
            found = survey(directory, wanted, params)
            due = bool(found["removed"]) or any(state != "present" for state in found["states"].values())
            settled = settle(module, directory, wanted) if due and not module.check_mode else None
            if settled is not None:
                module.exit_json(due=False, **settled)
            module.exit_json(due=due, **outcome(directory, wanted, {item.name: "kept" for item in wanted}, []))
        if not module.check_mode and not directory.is_dir():
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if module.check_mode:
            module.exit_json(**apply(module, directory, wanted))
        if phase == "append":
            chunk = params["chunk"]
            item = next(item for item in wanted if item.name == chunk["name"])
            with mf.locked(directory, params["lock_timeout"]):
                size = mf.append_chunk(directory, item, Path(chunk["path"]), int(chunk["offset"]), int(chunk["bytes"]))
            settled = settle(module, directory, wanted) if chunk["last"] else None
            module.exit_json(size=size, due=settled is None, **(settled or {"changed": True}))
        with mf.locked(directory, params["lock_timeout"]):
            module.exit_json(**apply(module, directory, wanted))
    except mf.Refused as exc:
        # The action plugin can look at the file that it was sent from.
        module.fail_json(msg=str(exc), refused=exc.name)
    except mf.ModelFileError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or directory}: {exc.strerror or exc}")


if __name__ == "__main__":
    main()
