# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of llama_release: send the artifact to hosts that do not have the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils import _artifact
from ..plugin_utils import _progress

display = Display()


class ActionModule(ActionBase):
    """Run llama_release, with the archive where it is needed."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the host, send what it lacks, and let it install that."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._vars = task_vars or {}
        arguments = {key: value for key, value in self._task.args.items() if key != "archive"}
        fingerprint = str(arguments.get("fingerprint") or "")
        try:
            if not fingerprint:
                return {**result, **self._without_name(arguments)}
            answer = self._module(arguments)
            wanted = not answer.get("failed") and answer.get("needs_archive")
            # In check mode the artifact may still have to be built.
            if wanted and not self._task.check_mode:
                answer = self._send(arguments, self._archive(arguments, fingerprint))
            result.update(answer, fingerprint=fingerprint)
        except _artifact.ArtifactError as exc:
            # Returned and not raised: `failed_when` and `until` see it like any failure of the module.
            result.update(failed=True, changed=False, msg=str(exc))
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        result.pop("needs_archive", None)
        return result

    def _without_name(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A bare host has no compiler in check mode, and the compiler's version is part of a release's name."""
        if not self._task.check_mode:
            raise _artifact.ArtifactError(
                "no fingerprint is given, so there is no release to install: run the role llama_build on this host"
                " first, or name one (llama_install_fingerprint)"
            )
        root = arguments.get("root") or "/opt/llamafleet"
        return {"changed": True, "msg": f"A release would be built and installed below {root}."}

    def _module(self, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="llamafleet.turboquant.llama_release",
            module_args={**arguments, **more},
            task_vars=self._vars,
        )
        return answer

    def _archive(self, arguments: dict[str, Any], fingerprint: str) -> Path:
        source = str(arguments.get("src") or "")
        if not source:
            raise _artifact.ArtifactError(
                f"this host does not have the release {fingerprint}, and no artifact is given in src: "
                "build it first, or name a release that is there"
            )
        path = Path(self._loader.path_dwim(source))
        manifest = _artifact.read_manifest(path)
        if manifest["fingerprint"] != fingerprint:
            raise _artifact.ArtifactError(
                f"{path} holds the build {manifest['fingerprint']}, and {fingerprint} was asked for"
            )
        return path

    def _send(self, arguments: dict[str, Any], archive: Path) -> dict[str, Any]:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote = self._connection._shell.join_path(self._connection._shell.tmpdir, "artifact.tar.gz")
        host = str(self._vars.get("inventory_hostname", "host"))
        progress = _progress.Progress(display.display, f"llama_release on {host}")
        with _progress.Ticking(progress, "send artifact", _progress.megabytes(archive.stat().st_size)):
            self._transfer_file(str(archive), remote)
        return self._module(arguments, archive=remote)
