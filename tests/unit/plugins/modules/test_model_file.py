# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a process, as Ansible runs it, without a network beyond the loopback interface."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys

import pytest

MODULE = "ansible_collections.llamafleet.turboquant.plugins.modules.model_file"
CONTENT = b"GGUF" + bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()
# The module writes only its own directory; nothing listens on the discard port of the loopback interface.
NOWHERE = "http://127.0.0.1:9/m.gguf"


def run(directory, files, check=False, **more):
    arguments = {"directory": str(directory), "files": files, "reserve_mib": 0, "retries": 0, **more}
    arguments["_ansible_check_mode"] = check
    arguments["_ansible_remote_tmp"] = str(directory.parent / "tmp")
    code = (
        "import json, sys\n"
        "try:\n"
        "    from ansible.module_utils.testing import patch_module_args\n"
        "except ImportError:\n"
        "    raise SystemExit('ansible-core 2.19 or newer is needed')\n"
        f"from {MODULE} import main\n"
        "with patch_module_args(json.loads(sys.argv[1])):\n"
        "    main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    assert process.stdout, process.stderr
    return json.loads(process.stdout)


def entry(**more):
    return {"name": "m.gguf", "sha256": DIGEST, "url": NOWHERE, **more}


def test_check_mode_predicts_and_leaves_the_host_alone(tmp_path):
    directory = tmp_path / "models"
    result = run(directory, [entry(bytes=len(CONTENT))], check=True)
    assert result["changed"] is True
    assert result["files"][0]["action"] == "placed"
    assert "m.gguf sha256:" in result["diff"]["after"]
    assert not directory.exists()


def test_an_unknown_file_of_the_right_digest_is_taken_over_without_a_change(tmp_path):
    (tmp_path / "m.gguf").write_bytes(CONTENT)
    assert run(tmp_path, [entry()], phase="plan")["due"] is True
    first = run(tmp_path, [entry()])
    assert (first["changed"], first["files"][0]["action"]) == (False, "verified")
    second = run(tmp_path, [entry()])
    assert (second["changed"], second["files"][0]["action"]) == (False, "kept")
    assert run(tmp_path, [entry()], phase="plan")["due"] is False


def test_a_damaged_file_is_a_change_and_stays_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "m.gguf").write_bytes(CONTENT[:-1])
    assert run(tmp_path, [entry()], check=True)["files"][0]["action"] == "replaced"
    result = run(tmp_path, [entry()])
    assert result["failed"] is True
    assert "cut short 1 times in a row" in result["msg"]
    assert (tmp_path / "m.gguf").read_bytes() == CONTENT[:-1]


def test_no_space_is_refused_before_anything_is_written(tmp_path):
    result = run(tmp_path, [entry(bytes=1 << 60)])
    assert result["failed"] is True
    assert f"{1 << 60} bytes" in result["msg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_pruning_removes_only_what_the_module_placed(tmp_path):
    (tmp_path / "m.gguf").write_bytes(CONTENT)
    run(tmp_path, [entry()])
    (tmp_path / "by-hand.gguf").write_bytes(b"x")
    assert run(tmp_path, [])["removed"] == []
    assert run(tmp_path, [], prune=True)["removed"] == ["m.gguf"]
    assert (tmp_path / "by-hand.gguf").exists()
    assert not (tmp_path / "m.gguf").exists()


def test_a_token_is_in_no_output(tmp_path):
    result = run(tmp_path, [entry(token="hf_s3cret")], hf_token="hf_0ther")
    assert "s3cret" not in json.dumps(result)
    assert "hf_0ther" not in json.dumps(result)


@pytest.mark.parametrize("phase", ["plan", "apply"])
def test_a_bad_list_is_refused_with_its_reason(tmp_path, phase):
    result = run(tmp_path, [entry(sha256="x")], phase=phase)
    assert result["failed"] is True
    assert "64 hexadecimal digits" in result["msg"]


def controller(tmp_path, **more):
    return entry(url=None, path=str(tmp_path / "on-the-controller"), bytes=len(CONTENT), **more)


def append(tmp_path, directory, block, offset, last, **more):
    (tmp_path / "chunk").write_bytes(block)
    chunk = {
        "name": "m.gguf", "path": str(tmp_path / "chunk"), "offset": offset, "bytes": len(block), "last": last, **more
    }  # fmt: skip
    return run(directory, [controller(tmp_path)], phase="append", chunk=chunk)


def test_a_file_of_the_controller_takes_one_look_and_one_step_for_each_chunk(tmp_path):
    directory = tmp_path / "models"
    first = run(directory, [controller(tmp_path)], phase="plan")
    assert (first["due"], first["needs_copy"]) == (False, [{"name": "m.gguf", "offset": 0}])
    middle = append(tmp_path, directory, CONTENT[:99], 0, last=False)
    assert (middle["size"], middle["due"]) == (99, True)
    assert not (directory / "m.gguf").exists()
    done = append(tmp_path, directory, CONTENT[99:], 99, last=True)
    assert (done["due"], done["needs_copy"], done["files"][0]["action"]) == (False, [], "placed")
    assert (directory / "m.gguf").read_bytes() == CONTENT
    assert run(directory, [controller(tmp_path)], phase="plan")["due"] is False


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_the_service_reads_the_files_whatever_the_umask_of_the_login(tmp_path, umask):
    directory = tmp_path / "of" / "models"
    before = os.umask(umask)
    try:
        run(directory, [controller(tmp_path)], phase="apply")
        append(tmp_path, directory, CONTENT, 0, last=True)
    finally:
        os.umask(before)
    assert (directory / "m.gguf").stat().st_mode & 0o777 == 0o644
    for folder in (directory, directory.parent):
        assert folder.stat().st_mode & 0o777 == 0o755, folder


def test_a_chunk_damaged_on_its_way_is_refused_before_anything_is_placed(tmp_path):
    directory = tmp_path / "models"
    result = append(tmp_path, directory, CONTENT[:-1] + b"?", 0, last=True)
    assert (result["failed"], result["refused"]) == (True, "m.gguf")
    assert [path.name for path in directory.iterdir()] == [".lock"]


def test_while_another_run_works_there_nothing_is_done_at_once(tmp_path):
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(tmp_path, [controller(tmp_path)], phase="plan")["due"] is True
    assert run(tmp_path, [controller(tmp_path)], phase="plan")["due"] is False
