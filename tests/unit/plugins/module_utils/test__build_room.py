# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What builds take of a builder's room, with locks in place of builds."""

from __future__ import annotations

import fcntl
import json
import os
import threading

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _artifact, _build_job, _build_room

A, B, C = (character * 32 for character in "abc")


@pytest.fixture
def build(tmp_path):
    """Leave the work folder of a build, which runs as long as the test does or has ended."""
    held = []

    def leave(name, busy=False, used_mib=0, status=None, **job):
        work = tmp_path / "work" / name
        (work / "build").mkdir(parents=True)
        if status:
            (work / "status.json").write_text(json.dumps(status), encoding="utf-8")
        if job:
            (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (work / "build" / "object.o").write_bytes(b"x" * (used_mib << 20))
        lock = (work / "lock").open("w", encoding="ascii")
        held.append(lock)
        if busy:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return work

    yield leave
    for lock in held:
        lock.close()


def test_what_running_builds_will_still_take_is_promised(tmp_path, build):
    build(A, busy=True, used_mib=3, need_mib=10)
    build(B, need_mib=100)
    build(C, busy=True, need_mib=1000)
    assert _build_room.promised_mib(tmp_path, A) == 1000
    assert _build_room.promised_mib(tmp_path, B) == 1007
    assert _build_room.promised_mib(tmp_path, "d" * 32) == 1007
    # One that takes more than was foreseen gives nothing back to the others.
    assert _build_room.still_needed(2, tmp_path / "work" / A) == 0
    assert _build_room.still_needed(2, tmp_path / "nowhere") == 2


def test_a_build_that_was_killed_while_it_was_started(tmp_path, build):
    build(A, busy=True)
    (tmp_path / "work" / A / "job.json").write_text("{", encoding="utf-8")
    (tmp_path / "work" / "of-somebody").mkdir()
    assert _build_room.promised_mib(tmp_path, B) == 0
    assert [left.work.name for left in _build_room.read_builds(tmp_path)] == [A]


def ran(started, ended, finished=True):
    return {"started": started, "updated": ended, "finished": finished}


def git(digit):
    return {"kind": "git", "identity": digit * 40, "url": f"https://{digit}.invalid/x.git"}


def archive(digit):
    return {"kind": "archive", "identity": digit * 64, "url": ""}


def lay_out(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def make_artifact(root, name, source, age):
    """Write an artifact of which there is the manifest, as old as this."""
    said = {"kind": source["kind"], "url": source["url"]}
    said["commit" if source["kind"] == "git" else "sha256"] = source["identity"]
    stage = root / "stage"
    stage.mkdir(exist_ok=True)
    manifest = dict.fromkeys(_artifact._REQUIRED, "x")
    manifest.update(format=_artifact.FORMAT, fingerprint=name, source=said, files={})
    path = root / "artifacts" / f"{name}.tar.gz"
    _artifact.pack(stage, manifest, path)
    os.utime(path, (1000 - age, 1000 - age))


def superfluous(root, fingerprint, source, keep=2):
    return [str(path.relative_to(root)) for path in _build_room.superfluous(root, keep, fingerprint, source)]


@pytest.mark.parametrize(
    ("others", "gone"),
    [
        ({}, False),
        # Begun before the failed one ended: both were wanted in one run, and the next run goes on with it.
        ({B: ran(15, 40)}, False),
        # Begun after its end, and still running.
        ({B: None}, False),
        ({B: ran(25, 40)}, True),
        # One that failed too, or was killed, shows as well that the run was another one.
        ({B: ran(25, 40, finished=False)}, True),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_build_that_did_not_end_well_goes_on_until_it_is_given_up(tmp_path, build, others, gone, finished):
    build(A, source=git("1"), status=ran(10, 20, finished))
    for name, status in others.items():
        build(name, busy=status is None, source=git("1"), status=status or ran(25, 30, finished=False))
    found = superfluous(tmp_path, C, git("1"))
    assert (f"work/{A}" in found) is gone
    assert superfluous(tmp_path, A, git("1")) == []


def test_of_a_running_build_nothing_goes(tmp_path, build):
    work = f"work/{A}"
    build(A, busy=True, source=archive("1"), status=ran(1, 2, finished=False))
    build(B, source=git("2"), status=ran(5, 6))
    beside = (f"sources/archive-{'1' * 64}", f"sources/.archive-{'1' * 64}-77", f"downloads/{'1' * 64}.partial")
    lay_out(tmp_path, *beside, f"artifacts/.{A}.tar.gz.77")
    found = superfluous(tmp_path, C, git("3"))
    assert work not in found
    assert not {*beside, f"artifacts/.{A}.tar.gz.77"} & set(found)


def test_what_nobody_needs_goes(tmp_path, build):
    make_artifact(tmp_path, A, git("1"), age=1)
    make_artifact(tmp_path, B, archive("2"), age=2)
    make_artifact(tmp_path, C, git("3"), age=3)
    # The log of one is gone, so that its artifact alone tells of its source.
    build(B, source=archive("2"), status=ran(1, 2))
    build(C, source=git("3"), status=ran(1, 2))
    build("d" * 32, source=git("4"), status=ran(3, 4))
    build("e" * 32, source=git("1"), status=ran(5, 6))
    name = {digit: _build_job.repository_name(git(digit)["url"]) for digit in "1345"}
    stay = [
        f"sources/git-{'1' * 40}", f"sources/archive-{'2' * 64}", f"git/{name['1']}", "sources/notes", "git/notes",
        f"sources/git-{'9' * 40}-of-somebody", "downloads/notes", "artifacts/notes.tar.gz",
    ]  # fmt: skip
    go = [
        f"artifacts/.{C}.tar.gz.77", f"sources/git-{'3' * 40}", f"sources/git-{'4' * 40}", f"sources/git-{'9' * 40}",
        f"sources/.git-{'1' * 40}-77", f"sources/.git-{'1' * 40}-77.tar", f"git/{name['3']}", f"git/{name['4']}",
        f"downloads/{'2' * 64}", f"downloads/{'2' * 64}.partial", f"downloads/{'8' * 64}.sent",
    ]  # fmt: skip
    lay_out(tmp_path, *stay, *go)
    before = sorted(path for path in tmp_path.rglob("*"))
    found = superfluous(tmp_path, "e" * 32, git("1"))
    assert sorted(found) == sorted([*go, f"artifacts/{C}.tar.gz", f"work/{C}", f"work/{'d' * 32}"])
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert _build_room.remove(_build_room.superfluous(tmp_path, 2, "e" * 32, git("1"))) != []
    assert all((tmp_path / item).exists() for item in stay)
    assert not any((tmp_path / item).exists() for item in found)
    assert superfluous(tmp_path, "e" * 32, git("1")) == []


def test_a_removal_that_was_stopped_leaves_no_half_source(tmp_path, monkeypatch):
    tree = tmp_path / "sources" / f"git-{'9' * 40}"
    lay_out(tmp_path, f"sources/{tree.name}/CMakeLists.txt", f"sources/{tree.name}/src/llama.cpp")

    def killed(path, ignore_errors):
        (path / "CMakeLists.txt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_build_room.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            _build_room.remove([tree])
    assert not tree.exists()
    left = _build_room.superfluous(tmp_path, 2, A, git("1"))
    assert [path.name.rpartition("-")[0] for path in left] == [f".gone-{tree.name}"]
    assert _build_room.remove(left) == left
    assert list((tmp_path / "sources").iterdir()) == []


def test_what_cannot_be_removed_is_not_said_to_be_gone(tmp_path, monkeypatch):
    lay_out(tmp_path, "sources/fixed/file", "sources/loose/file")
    real = _build_room.shutil.rmtree

    def immutable(path, ignore_errors):
        if "fixed" not in path.name:
            real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(_build_room.shutil, "rmtree", immutable)
    fixed, loose = tmp_path / "sources" / "fixed", tmp_path / "sources" / "loose"
    assert _build_room.remove([fixed, loose]) == [loose]


def test_a_damaged_artifact_stops_nothing(tmp_path):
    lay_out(tmp_path, f"artifacts/{A}.tar.gz", f"sources/git-{'1' * 40}")
    assert superfluous(tmp_path, B, git("1")) == []


def test_one_at_a_time_looks_and_starts(tmp_path):
    order = []

    def second():
        with _build_room.alone(tmp_path):
            order.append("second")

    with _build_room.alone(tmp_path):
        waits = threading.Thread(target=second)
        waits.start()
        waits.join(0.3)
        order.append("first")
    waits.join(10)
    assert order == ["first", "second"]
