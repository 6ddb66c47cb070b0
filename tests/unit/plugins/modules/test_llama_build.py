# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that starts builds. The scenarios llama_build and build run it; what they are too slow for is here."""

from __future__ import annotations

import ast
import inspect
import json
import time

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import (
    _build_job,
    _build_plan,
    _known_builds,
)
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_build


def test_the_job_takes_along_whatever_its_files_import():
    sent = {module.__name__.rpartition(".")[2] for module in llama_build._JOB_FILES}
    for module in llama_build._JOB_FILES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and node.level:
                wanted = {alias.name for alias in node.names} if node.module is None else {node.module}
                assert wanted <= sent, (
                    f"{module.__name__} imports {', '.join(wanted - sent)}, which builders are not sent"
                )


PARAMS = {
    "backends": ["cpu"], "targets": ["llama-server"], "cpu_features": [], "arm_arch": "armv8.2-a",
    "cuda_architectures": [], "gpu_targets": [], "cache_type_pairs": [], "rocwmma": False, "tls": "never",
    "cmake_options": {}, "toolchain": {}, "allow_known_bad": False,
}  # fmt: skip


GIT = {"kind": "git", "commit": "1" * 40}
ARCHIVE = {"kind": "archive", "sha256": "2" * 64}
NO_NUMBER = "has no number in llama_build_source"
KNOWN_BAD = "builds b9914 to b10513 .* are known to be bad"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({**GIT, "url": f"https://mirror.invalid/{_known_builds.FORK}.git"}, NO_NUMBER),
        ({**GIT, "url": f"https://mirror.invalid/{_known_builds.FORK}.git", "number": 10000}, KNOWN_BAD),
        ({**GIT, "url": f"https://github.com/{_known_builds.FORK.lower()}", "number": 10000}, KNOWN_BAD),
        ({**GIT, "url": "file:///srv/git/turboquant.git", "number": 10000}, KNOWN_BAD),
        ({**ARCHIVE, "url": f"https://github.com/{_known_builds.FORK}/archive/x.tar.gz"}, NO_NUMBER),
        ({**ARCHIVE, "url": f"https://github.com/{_known_builds.FORK}/archive/x.tar.gz", "number": 10000}, KNOWN_BAD),
        ({**ARCHIVE, "path": "/srv/llama-cpp-turboquant-b10000.tar.gz", "number": 10000}, KNOWN_BAD),
    ],
)
def test_the_fork_is_compared_with_what_is_known_to_be_bad_wherever_it_comes_from(tmp_path, source, said):
    params = {**PARAMS, "source": source, "directory": str(tmp_path)}
    with pytest.raises(_build_plan.BuildError, match=said):
        llama_build.Builder(params).plan()


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "directory"},
        {**ARCHIVE, "path": "/srv/turboquant.tar.gz", "commit": _known_builds.DEFAULT_COMMIT[:9]},
        {**GIT, "url": "https://mirror.invalid/ggml-org/llama.cpp"},
    ],
)
def test_what_cannot_be_compared_or_is_the_pin_is_built(tmp_path, monkeypatch, source):
    # A builder with all that it needs, which not every machine is.
    probed = {
        "programs": {}, "compilers": {}, "cmake": "4.1.0", "distribution": {}, "architecture": "x86_64",
        "glibc": "2.42", "environment": {},
    }  # fmt: skip
    monkeypatch.setattr(llama_build._build_host, "probe", lambda *_arguments: probed)
    tree = tmp_path / "turboquant"
    tree.mkdir()
    given = {**source, "path": str(tree)} if source["kind"] == "directory" else source
    params = {**PARAMS, "source": given, "directory": str(tmp_path / "build")}
    assert llama_build.Builder(params).plan()["fingerprint"]


@pytest.mark.parametrize(
    "given",
    [
        {"gpu_targets": ["gfx1151", "gfx1152"]},
        {"toolchain": {"cmake_options": {"GPU_TARGETS": "gfx1152"}, "environment": {}, "run_path": [], "problems": []}},
    ],
)
def test_the_pin_is_refused_for_the_gpus_that_it_computes_wrongly_on(tmp_path, given):
    source = {"kind": "git", "url": "/srv/mirror", "commit": _known_builds.DEFAULT_COMMIT}
    params = {**PARAMS, "source": source, "directory": str(tmp_path), "backends": ["rocm"], **given}
    with pytest.raises(_build_plan.BuildError, match=r"for gfx1152, gfx1153 are known to be bad.*Take the backend vul"):
        llama_build.Builder(params).plan()


A, B, C = (character * 32 for character in "abc")
# CMake and Ninja: they wait until they may go on, and fail.
WAITS = """#!/bin/sh
while [ -e {hold} ]; do sleep 0.05; done
exit 1
"""


class Host:
    """A builder on which every build waits in CMake until it is let go, and then fails."""

    def __init__(self, top, monkeypatch) -> None:
        self.root = top / "build"
        self.tree = top / "tree"
        self.tree.mkdir()
        (self.tree / "CMakeLists.txt").write_text('project("llama.cpp" C CXX)\n', encoding="utf-8")
        self.hold = top / "hold"
        self.hold.touch()
        self.program = top / "waits"
        self.program.write_text(WAITS.format(hold=self.hold), encoding="utf-8")
        self.program.chmod(0o755)
        self.free_mib = 5000
        monkeypatch.setattr(llama_build._build_host, "free_mib", lambda folder: self.free_mib)
        self.builder = llama_build.Builder(
            {**PARAMS, "directory": str(self.root), "ccache_dir": "", "jobs": 0, "keep": 2, "archive": ""}
        )

    def plan(self, fingerprint, need_mib=1000):
        source = _build_plan.parse_source(
            {"kind": "directory", "path": str(self.tree)}, llama_build._build_source.digest_directory(self.tree)
        )
        given = {name: value for name, value in PARAMS.items() if name not in ("toolchain", "allow_known_bad", "tls")}
        request = _build_plan.make_request(
            source=source, architecture="x86_64", tls=False, toolchain_options={}, rpath=[], **given
        )
        programs = {"cmake": str(self.program), "ninja": str(self.program), "git": "", "ccache": ""}
        return {
            "fingerprint": fingerprint,
            "request": request,
            "host": {"programs": programs, "compilers": {}, "cmake": "4.1.0", "distribution": {}},
            "need_mib": need_mib,
            "whole_mib": need_mib,
            "archive_needed": False,
        }

    def work(self, fingerprint):
        return self.root / "work" / fingerprint

    def let_go(self) -> None:
        self.hold.unlink(missing_ok=True)
        limit = time.monotonic() + 30
        while any(_build_job.held(work) for work in (self.root / "work").glob("*")):
            assert time.monotonic() < limit
            time.sleep(0.05)


@pytest.fixture
def host(tmp_path, monkeypatch):
    made = Host(tmp_path, monkeypatch)
    yield made
    made.let_go()


def test_a_build_needs_room_beside_those_that_run(host):
    # As soon as it is started it counts, however soon the next one asks.
    assert not host.builder.start(host.plan(A, 3000))["attached"]
    said = r"takes up to 2500 MiB .* builds that run there will take up to 3000 MiB: free 500 MiB, wait for those"
    with pytest.raises(_build_plan.BuildError, match=said):
        host.builder.start(host.plan(B, 2500))
    assert not host.work(B).exists()
    assert not host.builder.start(host.plan(C, 2000))["attached"]
    # One that runs is found again, however full the disk has become by it.
    host.free_mib = 0
    assert host.builder.start(host.plan(A, 3000))["attached"]
    assert host.builder.inspect(A)["alive"]
    host.let_go()
    assert not host.builder.inspect(A)["alive"]
    host.free_mib = 2500
    assert not host.builder.start(host.plan(B, 2500))["attached"]


def old_pin(host):
    """Leave what a failed build of another pin has left, and one after it."""
    for name, started in ((B, 1), (C, 3)):
        host.work(name).mkdir(parents=True)
        status = {"started": started, "updated": started + 1, "finished": True, "pid": 1}
        (host.work(name) / "status.json").write_text(json.dumps(status), encoding="utf-8")
    tree = host.root / "sources" / f"git-{'1' * 40}"
    tree.mkdir(parents=True)
    (tree / "big").write_bytes(b"x" * (2 << 20))
    return tree


def test_before_a_build_begins_what_was_given_up_goes(host):
    tree = old_pin(host)
    started = host.builder.start(host.plan(A))
    assert started["pruned"] == [f"sources/{tree.name}", f"work/{B}"]
    assert not tree.exists()
    assert host.work(A).is_dir()
    assert "pruned" not in host.builder.start(host.plan(A))


def test_pruning_is_told_and_a_second_time_changes_nothing(host, monkeypatch):
    tree = old_pin(host)
    plan = {**host.plan(A), "inputs": {}, "notes": [], "artifact": "", "artifact_present": True, "free_mib": 1}
    monkeypatch.setattr(llama_build.Builder, "plan", lambda _self: plan)
    # A build with another option begins from the source that is there.
    kept = host.root / "sources" / plan["request"].source.name
    kept.mkdir()

    def run(check_mode):
        class Ended(Exception):
            pass

        class Module:
            def __init__(self, argument_spec, supports_check_mode):
                self.params = {**host.builder.params, "source": {}, "operation": "inspect"}
                self.check_mode = check_mode

            def exit_json(self, **result):
                raise Ended(result)

        monkeypatch.setattr(llama_build, "AnsibleModule", Module)
        with pytest.raises(Ended) as ended:
            llama_build.main()
        result = ended.value.args[0]
        return result["changed"], result.get("pruned")

    assert run(check_mode=True) == (False, None)
    assert tree.exists()
    assert run(check_mode=False) == (True, [f"sources/{tree.name}", f"work/{B}"])
    assert run(check_mode=False) == (False, [])
    assert kept.is_dir()


def test_room_that_will_be_made_counts(host, monkeypatch):
    old_pin(host)
    monkeypatch.setattr(llama_build._build_host, "probe", lambda *_arguments: host.plan(A)["host"] | {
        "architecture": "x86_64", "glibc": "2.42", "environment": {}
    })  # fmt: skip
    host.builder.params["source"] = {"kind": "directory", "path": str(host.tree)}
    host.free_mib = 1023
    assert host.builder.plan()["free_mib"] == 1025
    host.free_mib = 5000
    assert host.builder.plan()["free_mib"] == 5000
