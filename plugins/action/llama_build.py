# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of llama_build: start the build, show its progress, bring the artifact home."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils import _artifact, _build_plan
from ..plugin_utils import _progress

display = Display()

POLL = 3.0
# A builder writes its status every 5 seconds; after this long without, it is looked for.
SILENT = 30.0

DEFAULT_CACHE = "~/.cache/llamafleet/artifacts"


class ActionModule(ActionBase):
    """Run llama_build in steps."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Build, unless the artifact is there."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._vars = task_vars or {}
        arguments = dict(self._task.args)
        for name in ("operation", "archive"):
            arguments.pop(name, None)
        host = str(self._task.delegate_to or self._vars.get("inventory_hostname", "builder"))
        self._progress = _progress.Progress(display.display, f"llama_build on {host}")
        try:
            archive = self._local_archive(arguments.get("source"))
            result.update(self._build(arguments, archive))
        except (_build_plan.BuildError, _artifact.ArtifactError) as exc:
            # Returned and not raised: `failed_when` and `until` see it like any failure of the module.
            result.update(failed=True, changed=False, msg=str(exc))
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _module(self, arguments: dict[str, Any], operation: str, **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="llamafleet.turboquant.llama_build",
            module_args={**arguments, "operation": operation, **more},
            task_vars=self._vars,
        )
        return answer

    def _local_archive(self, source: Any) -> Path | None:
        """Find the archive on the controller and see that it is the right one, before any host is touched."""
        if not isinstance(source, dict) or source.get("kind") != "archive" or not source.get("path"):
            return None
        parsed = _build_plan.parse_source(source)
        path = Path(self._loader.path_dwim(parsed.path))
        if not path.is_file():
            raise _build_plan.BuildError(f"source path {path} is no file on the controller")
        found = _artifact.sha256_file(path)
        if found != parsed.identity:
            raise _build_plan.BuildError(
                f"{path} has the sha256 {found}, and llama_build_source says {parsed.identity}: "
                "correct the digest, or take the file that it belongs to"
            )
        return path

    def _build(self, arguments: dict[str, Any], archive: Path | None) -> dict[str, Any]:
        plan = self._module(arguments, "plan")
        if plan.get("failed") or not plan.get("fingerprint"):
            return plan
        fingerprint = plan["fingerprint"]
        cache = Path(str(arguments.get("cache_dir") or DEFAULT_CACHE)).expanduser()
        kept = cache / f"{fingerprint}{_artifact.SUFFIX}"
        answer: dict[str, Any] = {
            key: plan[key] for key in ("fingerprint", "inputs", "notes", "remote_artifact", "invocation") if key in plan
        }
        answer.update(artifact=str(kept), changed=False)
        if kept.is_file():
            answer["manifest"] = _artifact.read_manifest(kept)
            return answer
        if not plan["artifact_present"]:
            _build_plan.check_disk(plan["need_mib"], plan["free_mib"], str(arguments.get("directory", "")))
        answer["changed"] = True
        if self._task.check_mode:
            answer["msg"] = f"the artifact {fingerprint} would be built and brought to {kept}"
            return answer
        pruned: list[str] = []
        if not plan["artifact_present"]:
            done = self._compile(arguments, plan, archive)
            if done.get("failed"):
                return done
            pruned = done["pruned"]
        self._bring_home(plan["remote_artifact"], kept, fingerprint)
        answer["manifest"] = _artifact.read_manifest(kept)
        # The artifact is there now; the oldest ones go, and what was needed for them alone.
        inspected = self._module(arguments, "inspect")
        answer["pruned"] = sorted({*pruned, *inspected.get("pruned", [])})
        return answer

    def _compile(self, arguments: dict[str, Any], plan: dict[str, Any], archive: Path | None) -> dict[str, Any]:
        """Run the build to its end; return what was removed for it, or the result of the task where it failed."""
        for note in plan["notes"]:
            self._progress.say("note", note)
        more = {}
        if plan["archive_needed"] and archive is not None:
            remote = self._connection._shell.join_path(self._remote_folder(), "source")
            size = _progress.megabytes(archive.stat().st_size)
            with _progress.Ticking(self._progress, "send source", size):
                self._transfer_file(str(archive), remote)
            more["archive"] = remote
        started = self._module(arguments, "start", **more)
        if started.get("failed"):
            return started
        if started["attached"]:
            self._progress.say("attach", "this build runs already")
        status = self._follow(arguments, started["status"])
        if not status.get("failed"):
            return {"pruned": started.get("pruned", [])}
        message = f"llama_build: {status['phase']} failed: {status['error']}"
        if status.get("log"):
            message = "\n".join([message, *status["tail"], f"The full log is {status['log']} on this host."])
        return {
            "failed": True,
            "changed": False,
            "msg": message,
            "fingerprint": plan["fingerprint"],
            **{key: status[key] for key in ("rc", "log", "tail", "phase") if status.get(key) is not None},
        }

    def _follow(self, arguments: dict[str, Any], path: str) -> dict[str, Any]:
        """Read the status of the build until it has ended."""
        command = f"date +%s; cat {shlex.quote(path)}"
        waited = time.monotonic()
        while True:
            text = self._low_level_execute_command(command, sudoable=True).get("stdout", "")
            now, _newline, body = text.partition("\n")
            status: dict[str, Any]
            try:
                status = json.loads(body)
                age = float(now) - status["updated"]
            except (ValueError, KeyError):
                status, age = {}, time.monotonic() - waited
            if status.get("finished"):
                self._progress.say(
                    "finished" if not status["failed"] else "failed",
                    status["phase"] if status["failed"] else _progress.megabytes(status["size"]),
                    status["updated"] - status["started"],
                )
                return status
            if status:
                self._show(status)
            if age > SILENT:
                inspected = self._module(arguments, "inspect")
                if inspected.get("failed"):
                    return {"failed": True, "phase": status.get("phase", "start"), "error": inspected["msg"]}
                if not inspected["alive"]:
                    end = "\n".join(inspected["job_log"])
                    return {
                        "failed": True,
                        "phase": status.get("phase", "start"),
                        "error": "the builder ended without a word, so it was killed; run again, and it goes on from "
                        f"there{f'. Its last words: {end}' if end else ''}",
                    }
                waited = time.monotonic()
            time.sleep(POLL)

    def _show(self, status: dict[str, Any]) -> None:
        text = status["message"]
        if status["total"] and status["message"] == "bytes":
            text = f"{_progress.megabytes(status['done'])} of {_progress.megabytes(status['total'])}"
        elif status["total"]:
            text = f"{text} [{status['done']}/{status['total']}]".strip()
        self._progress.say(status["phase"], text, status["updated"] - status["started"])

    def _remote_folder(self) -> str:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        return str(self._connection._shell.tmpdir)

    def _bring_home(self, remote: str, kept: Path, fingerprint: str) -> None:
        """Copy the artifact to the controller; it appears there complete or not at all."""
        readable = self._connection._shell.join_path(self._remote_folder(), "artifact")
        # The login user may not be able to read what root has built.
        copied = self._low_level_execute_command(
            f"cp {shlex.quote(remote)} {shlex.quote(readable)} && chmod 0644 {shlex.quote(readable)}", sudoable=True
        )
        if copied.get("rc") != 0:
            raise _artifact.ArtifactError(f"{remote} cannot be read on this host: {copied.get('stderr', '').strip()}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
        try:
            with _progress.Ticking(self._progress, "bring artifact to the controller"):
                self._connection.fetch_file(readable, str(temporary))
            _artifact.verify(temporary, fingerprint)
            temporary.replace(kept)
        finally:
            if temporary.exists():
                temporary.unlink()
