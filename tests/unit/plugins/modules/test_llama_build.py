# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that starts builds. The scenarios llama_build and build run it; what they are too slow for is here."""

from __future__ import annotations

import ast
import inspect

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _build_plan, _known_builds
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
def test_what_cannot_be_compared_or_is_the_pin_is_built(tmp_path, source):
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
    with pytest.raises(_build_plan.BuildError, match=r"for gfx1152, gfx1153 is known to be bad.*Take the backend vul"):
        llama_build.Builder(params).plan()
