# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the module model_file in steps: look, work in the background and show how far it is, send files."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils import _model_file

display = Display()

# The result of a step that needs no second look; the rest is between the action and its module.
PRIVATE = (
    "needs_copy",
    "due",
    "size",
    "invocation",
    "ansible_job_id",
    "results_file",
    "started",
    "finished",
    "stdout",
    "stderr",
)
# A chunk of any size costs a start of Python on the host: while sending takes less than this, the next one is larger.
QUICK = 4.0
LARGEST_CHUNK = 1 << 30
# A day: the module gives up by itself long before, when no byte arrives.
BACKGROUND_LIMIT = 86400


def amount(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


def progress_line(host: str, text: str) -> str | None:
    """Put the module's progress file into words; None when there is nothing to say."""
    try:
        state = json.loads(text)
        verb = {"fetch": "fetching", "verify": "reading", "resume": "reading again", "retry": "connecting again for"}[
            state["phase"]
        ]
        line = f"{host}: {verb} {state['name']}: {amount(state['done'])}"
        if state["total"]:
            line += f" of {amount(state['total'])} ({100 * state['done'] // state['total']} %)"
        if state["rate"]:
            line += f", {amount(state['rate'])}/s"
            if state["total"]:
                line += f", {int((state['total'] - state['done']) / state['rate'])} s left"
    except (ValueError, KeyError, TypeError):
        return None
    return line


def controller_files(args: dict[str, Any]) -> dict[str, list[str]]:
    """Fill in the sizes of files on the controller; return the paths that make each file, by its name."""
    paths: dict[str, list[str]] = {}
    for entry in args.get("files") or []:
        if not isinstance(entry, dict):
            continue
        pieces = entry.get("parts") or [entry]
        local = [piece for piece in pieces if isinstance(piece, dict) and piece.get("path")]
        for piece in local:
            path = Path(str(piece["path"]))
            if not path.is_file():
                raise AnsibleActionFail(f"model file {entry.get('name')!r}: {path} is not a file on the controller")
            size = path.stat().st_size
            asked = piece.get("bytes")
            if asked is not None and int(asked) != size:
                raise AnsibleActionFail(
                    f"model file {entry.get('name')!r}: {path} has {size} bytes, but bytes says {asked}; "
                    "the file is cut short or another one"
                )
            piece["bytes"] = size
        if local and len(local) == len(pieces):
            paths[str(entry.get("name"))] = [str(piece["path"]) for piece in local]
    return paths


class Joined:
    """Several files read as one."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = [(path, Path(path).stat().st_size) for path in paths]
        self.size = sum(size for _path, size in self.paths)

    @contextlib.contextmanager
    def as_file(self, offset: int, count: int) -> Iterator[tuple[str, int]]:
        """Name a file that holds these bytes, and how many they are: the file itself where it is asked for whole.

        Not one that its owner may not write: sftp gives what arrives the same mode, and nothing could be sent over it.
        """
        whole = len(self.paths) == 1 and offset == 0 and count >= self.size
        if whole and Path(self.paths[0][0]).stat().st_mode & 0o200:
            yield self.paths[0]
            return
        with tempfile.NamedTemporaryFile(dir=C.DEFAULT_LOCAL_TMP) as local:
            done = 0
            for path, size in self.paths:
                if offset >= size:
                    offset -= size
                    continue
                with Path(path).open("rb") as handle:
                    handle.seek(offset)
                    done += _model_file.copy_bytes(handle.fileno(), local.fileno(), min(count - done, size - offset))
                offset = 0
            yield local.name, done

    def sha256(self) -> str:
        """Return the digest of all of it."""
        digest = None
        for path, _size in self.paths:
            digest = _model_file.hash_file(Path(path), digest=digest)
        return str(digest.hexdigest()) if digest is not None else ""


class ActionModule(ActionBase):
    """Steps of model_file."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        self.host = str(task_vars.get("inventory_hostname", "host"))
        # A deep copy without the templar's laziness, for sizes are filled in below.
        self.args: dict[str, Any] = json.loads(json.dumps(dict(self._task.args)))
        try:
            paths = controller_files(self.args)
        except OSError as exc:
            raise AnsibleActionFail(f"{exc.filename}: {exc.strerror}") from exc
        try:
            return self._steps(paths, task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _steps(self, paths: dict[str, list[str]], task_vars: dict[str, Any]) -> dict[str, Any]:
        if self._task.check_mode:
            return self._public(self._step({}, task_vars))
        plan = self._step({"phase": "plan"}, task_vars)
        if plan.get("failed"):
            return self._explained(plan, paths)
        first = self._background(task_vars) if plan["due"] else plan
        missing = first.get("needs_copy") or []
        if first.get("failed") or not missing:
            return self._explained(first, paths)
        last: dict[str, Any] = {}
        for number, entry in enumerate(missing, start=1):
            joined = Joined(paths[entry["name"]])
            last = self._send(entry["name"], joined, int(entry["offset"]), number == len(missing), task_vars)
            if last.get("failed"):
                return self._explained(last, paths)
        if last.get("due", True):
            last = self._background(task_vars)
        if not last.get("failed"):
            if last.get("needs_copy"):
                names = ", ".join(entry["name"] for entry in last["needs_copy"])
                raise AnsibleActionFail(f"{names} did not arrive whole; another run works in the same directory")
            # The first look saw what the whole run changed; by the second, the downloads are in place already.
            sizes = {entry["name"]: entry["bytes"] for entry in last["files"]}
            first["files"] = [{**entry, "bytes": sizes[entry["name"]]} for entry in first["files"]]
            return self._public(first)
        return self._explained(last, paths)

    def _explained(self, result: dict[str, Any], paths: dict[str, list[str]]) -> dict[str, Any]:
        """Say of bytes that the host has refused whether they were wrong here already. That is read only now."""
        name = result.pop("refused", None)
        if name in paths:
            wanted = next(entry["sha256"] for entry in self.args["files"] if entry.get("name") == name)
            if Joined(paths[name]).sha256() == str(wanted).strip().lower().removeprefix("sha256:"):
                result["msg"] += "; the file on the controller is right, so it was damaged on its way: run again"
            else:
                result["msg"] += "; the file on the controller is that one: correct it, or the digest"
        return self._public(result)

    @staticmethod
    def _public(result: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in result.items() if key not in PRIVATE}

    def _step(self, extra: dict[str, Any], task_vars: dict[str, Any], asynchronous: bool = False) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(
            module_name="llamafleet.turboquant.model_file",
            module_args={**self.args, **extra},
            task_vars=task_vars,
            wrap_async=asynchronous,
        )
        return result

    def _background(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Run the work beside the connection and say how far it is. It goes on when the controller is cut off."""
        limit = self._task.async_val
        self._task.async_val = BACKGROUND_LIMIT
        try:
            job = self._step({}, task_vars, asynchronous=True)
        finally:
            # The executor polls by itself whenever this is set when the action returns.
            self._task.async_val = limit
        if job.get("failed") or "ansible_job_id" not in job:
            return job
        started = time.monotonic()
        said = started
        pause = 0.2
        folder = str(PurePosixPath(job["results_file"]).parent)
        while True:
            time.sleep(pause)
            pause = min(pause * 1.6, 5.0)
            status: dict[str, Any] = self._execute_module(
                module_name="ansible.legacy.async_status",
                module_args={
                    "jid": job["ansible_job_id"],
                    "_async_dir": folder,
                },
                task_vars=task_vars,
            )
            if status.get("failed") and "finished" not in status:
                return status
            if status.get("finished"):
                self._execute_module(
                    module_name="ansible.legacy.async_status",
                    module_args={
                        "jid": job["ansible_job_id"],
                        "mode": "cleanup",
                        "_async_dir": folder,
                    },
                    task_vars=task_vars,
                )
                return status
            if time.monotonic() - said >= 8:
                said = time.monotonic()
                step = self._step({"phase": "status"}, task_vars)
                line = progress_line(self.host, str(step.get("progress") or ""))
                display.display(line or f"{self.host}: waiting for the models, {int(said - started)} s")

    def _send(self, name: str, joined: Joined, offset: int, last: bool, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Send the file from offset on, chunk by chunk; return what the host has said to the last one.

        last: nothing is sent after this file, so the host goes on with what is to be done then.
        """
        smallest = chunk_size = int(self.args.get("chunk_mib") or 128) << 20
        largest = max(smallest, LARGEST_CHUNK)
        if self._connection._shell.tmpdir is None:
            self._make_tmp_path()
        remote = self._connection._shell.join_path(self._connection._shell.tmpdir, "chunk")
        started, first = time.monotonic(), offset
        said = started
        while True:
            begun = time.monotonic()
            try:
                with joined.as_file(offset, chunk_size) as (local, size):
                    if size:
                        self._transfer_file(local, remote)
            except (AnsibleError, OSError) as exc:
                if chunk_size > smallest:
                    # The room for a larger one may have been missing, here or on the host.
                    chunk_size = largest = smallest
                    continue
                if isinstance(exc, OSError):
                    raise AnsibleActionFail(f"model file {name!r}: {exc.filename}: {exc.strerror}") from exc
                raise
            if size == 0:
                raise AnsibleActionFail(
                    f"model file {name!r}: {joined.paths[-1][0]} became shorter while it was sent; "
                    f"{joined.size} bytes were there in the beginning, {offset} were sent"
                )
            seconds = time.monotonic() - begun
            # Read by the user that the module becomes; nothing of it is run.
            self._fixup_perms2((self._connection._shell.tmpdir, remote), execute=False)
            final = last and offset + size >= joined.size
            chunk = {"name": name, "path": remote, "offset": offset, "bytes": size, "last": final}
            step = self._step({"phase": "append", "chunk": chunk}, task_vars)
            if step.get("failed") or int(step["size"]) >= joined.size:
                return step
            offset = int(step["size"])
            # Every fork of the controller may come to keep one in the same place.
            room = shutil.disk_usage(C.DEFAULT_LOCAL_TMP).free
            if seconds < QUICK and room > 2 * chunk_size * C.DEFAULT_FORKS:
                chunk_size = min(2 * chunk_size, largest)
            now = time.monotonic()
            if now - said >= 5:
                said = now
                rate = (offset - first) / max(now - started, 0.001)
                display.display(
                    f"{self.host}: sending {name}: {amount(offset)} of {amount(joined.size)} "
                    f"({100 * offset // joined.size} %), {amount(rate)}/s"
                )
