# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module gguf_info as Ansible runs it: arguments, result, refusals, and what becomes of the token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _gguf_types
from ansible_collections.llamafleet.turboquant.plugins.modules import gguf_info
from ansible_collections.llamafleet.turboquant.tests.unit.gguf_server import serving
from ansible_collections.llamafleet.turboquant.tests.unit.gguf_writer import Writer, small_model

TOKEN = "hf_secretsecretsecret"


def run(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        gguf_info.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], check_mode: bool) -> None:
    metadata, tensors = small_model()
    (tmp_path / "m.gguf").write_bytes(Writer().file(metadata, tensors))
    result = run(capsys, path=str(tmp_path / "m.gguf"), _ansible_check_mode=check_mode)
    assert result["changed"] is False
    assert sorted(result["model"]) == ["architecture", "file_bytes", "header_bytes", "metadata", "tensors"]
    assert result["model"]["tensors"] == tensors
    assert result["checks"] == []


def test_a_remote_file_behind_a_redirect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Ansible's own HTTP client: its redirects and its .netrc stay out of it."""
    with serving() as front, serving() as back:
        back.files["/cdn"] = Writer().file(*small_model())
        front.redirects["/o/r/resolve/main/m.gguf"] = back.url("/cdn?sig=abc")
        result = run(capsys, url="hf:o/r/m.gguf", hf_endpoint=front.url(""), token=TOKEN)
        assert result["model"]["architecture"] == "gemma4"
        assert [r.authorization for r in front.requests] == [f"Bearer {TOKEN}"]
        assert [r.authorization for r in back.requests] == [None]
    assert TOKEN not in json.dumps(result)


@pytest.mark.parametrize("status", ["error", "gone"])
def test_failures_do_not_tell_the_token(capsys: pytest.CaptureFixture[str], status: str) -> None:
    with serving() as server:
        server.files["/m.gguf"] = b"x"
        server.behaviour = "error"
        url = server.url("/m.gguf?sig=abc")
        if status == "error":
            result = run(capsys, url=url, token=TOKEN)
    if status == "gone":
        result = run(capsys, url=url, token=TOKEN)
    assert result["failed"] is True
    assert "sig=abc" not in result["msg"]
    assert TOKEN not in json.dumps(result)


def test_a_proxy_of_the_environment_is_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as proxy:
        proxy.files["http://models.invalid/m.gguf"] = Writer().file(*small_model())
        monkeypatch.setenv("http_proxy", proxy.url(""))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert run(capsys, url="http://models.invalid/m.gguf")["model"]["architecture"] == "gemma4"
        result = run(capsys, url="http://models.invalid/m.gguf", use_proxy=False)
    assert result["failed"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of the following is required: path, url"),
        ({"path": "/x", "url": "https://h/x"}, "parameters are mutually exclusive: path|url"),
        ({"path": "/x", "token": TOKEN}, "missing parameter(s) required by 'token': url"),
        ({"path": "/nonexistent/m.gguf"}, "/nonexistent/m.gguf: No such file or directory"),
        ({"path": "/x", "build": "b1"}, "value of build must be one of: turboquant-69d8e4be, upstream-b11434, got: b1"),
        ({"url": "hf:x"}, "'hf:x' is not of the form hf:OWNER/REPO/FILE"),
    ],
)
def test_arguments_that_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], message: str
) -> None:
    result = run(capsys, **arguments)
    assert result["failed"] is True
    assert message in result["msg"]


def test_the_documented_builds_are_those_of_the_tables() -> None:
    import yaml

    options = yaml.safe_load(gguf_info.DOCUMENTATION)["options"]
    assert options["build"]["choices"] == sorted(_gguf_types.BUILDS)
    assert options["build"]["default"] == _gguf_types.DEFAULT_BUILD
