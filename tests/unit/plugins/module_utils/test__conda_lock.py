# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks of conda toolchains: how one comes of what micromamba found, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _conda_lock, _toolchain

CHANNEL = "https://conda.example/conda-forge"
SHA256 = "b" * 64


def conda_of(backends="cuda", machine="x86_64", **options):
    plan = _toolchain.toolchain_plan(44, backends, method="conda", machine=machine, gpu_targets=["12.1"], **options)
    assert plan["supported"], plan["reason"]
    return plan["conda"]


def version_and_build(spec, versions):
    name, wanted, build = [*spec.split("="), "", ""][:3]
    return name, versions.get(name) or (wanted if wanted not in ("", "*") else "1.0"), build or "h0_1"


def lock_lines(conda, **versions):
    """Return a lock with all that a plan names, a package of another name, and one for every machine."""
    lines = ["# made for a test", "@EXPLICIT", f"{CHANNEL}/noarch/tzdata-2026a-h0_1.tar.bz2#{'a' * 32}"]
    for spec in conda["specs"]:
        file = "-".join(version_and_build(spec, versions))
        lines.append(f"{CHANNEL}/{conda['platform']}/{file}.conda#{SHA256}")
    return lines


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("backends", ["cpu", "vulkan", "cuda", ["cuda", "vulkan"]])
def test_a_lock_with_all_that_the_plan_names_has_no_problem(machine, backends):
    conda = conda_of(backends, machine)
    assert _conda_lock.conda_lock_problems(lock_lines(conda), conda) == []
    # A CUDA release is named by its first two numbers, a package by all of them.
    longer = lock_lines(conda, **{name: "13.0.88" for name in ("cuda-nvcc", "cuda-version") if "cuda" in backends})
    assert _conda_lock.conda_lock_problems(longer, conda) == []


def first_line_last(lines):
    """Put one package before the line after which packages are installed."""
    return [lines[-1], *lines[:-1]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: [line for line in lines if line != "@EXPLICIT"], "it has no line @EXPLICIT"),
        (first_line_last, "stands before @EXPLICIT, where nothing is installed"),
        (first_line_last, "libcublas-dev is missing"),
        (lambda lines: [line for line in lines if "/cmake-" not in line], "cmake is missing"),
        (lambda lines: [*lines, lines[-1].replace("-1.0-", "-2.0-")], "libcublas-dev is there twice, as 1.0 and 2.0"),
        (lambda lines: [line.replace("version-13.0-", "version-12.9-") for line in lines],
         "cuda-version is 12.9, the plan of this host has 13.0"),
        (lambda lines: [line.replace("version-13.0-", "version-13.01-") for line in lines],
         "cuda-version is 13.01, the plan of this host has 13.0"),
        (lambda lines: [line.replace("linux-64/git-", "linux-aarch64/git-") for line in lines],
         "git is for linux-aarch64, this host is linux-64"),
        # micromamba passes over digests of other forms, so nothing would be verified.
        (lambda lines: [line.partition("#")[0] if "/ninja-" in line else line for line in lines], "is not the address"),
        (lambda lines: [line[:-1] if "/ninja-" in line else line for line in lines], "is not the address of a package"),
        (lambda lines: [f"{line[:-64]}sha256:{line[-32:]}" if "/ninja-" in line else line for line in lines],
         "is not the address of a package that ends with # and a digest"),
        (lambda lines: [*lines, "conda-forge/linux-64::ninja==1.13=h0"], "::ninja==1.13=h0' is not the address"),
    ],
)  # fmt: skip
def test_a_lock_of_something_else_is_told_by_its_packages(change, problem):
    conda = conda_of()
    problems = _conda_lock.conda_lock_problems(change(lock_lines(conda)), conda)
    assert any(problem in text for text in problems), problems


def test_a_lock_of_a_jetson_is_not_one_of_a_server():
    conda = conda_of(machine="aarch64")
    lines = [line.replace("arm-variant-1.0-sbsa", "arm-variant-1.0-tegra") for line in lock_lines(conda)]
    assert _conda_lock.conda_lock_problems(lines, conda) == [
        "arm-variant is built for tegra, the plan of this host has sbsa"
    ]


def test_locks_of_different_toolchains_have_different_names():
    names = [
        conda_of(backends, machine)["lock_name"]
        for machine in ("x86_64", "aarch64")
        for backends in ("cpu", "vulkan", "cuda", ["vulkan", "cuda"])
    ] + [conda_of(cuda_version="12.9")["lock_name"]]
    assert names[:4] == [
        "conda-linux-64-cpu.txt",
        "conda-linux-64-vulkan.txt",
        "conda-linux-64-cuda13.0.txt",
        "conda-linux-64-vulkan-cuda13.0.txt",
    ]
    assert len(set(names)) == len(names)


def test_what_a_host_happens_to_have_does_not_decide():
    assert conda_of(cuda_version="12.9")["solve_environment"] == {
        "CONDA_OVERRIDE_ARCHSPEC": "x86_64",
        "CONDA_OVERRIDE_GLIBC": "2.41",
        "CONDA_OVERRIDE_CUDA": "12.9",
    }
    assert conda_of("vulkan", "aarch64")["solve_environment"]["CONDA_OVERRIDE_CUDA"] == ""
    assert conda_of(["vulkan", "cuda"])["solve_environment"]["CONDA_OVERRIDE_CUDA"] == "13.0"


def test_the_solver_is_asked_for_all_that_the_plan_names_and_downloads_nothing():
    conda = conda_of(["cuda", "vulkan"], "aarch64", conda_channel="https://mirror.example/conda-forge/")
    arguments = conda["solve_arguments"]
    assert arguments[: -len(conda["specs"])] == [
        *("create", "--dry-run", "--json", "--yes", "--no-rc", "--override-channels"),
        *("--channel", "https://mirror.example/conda-forge", "--platform", "linux-aarch64"),
    ]
    assert arguments[-len(conda["specs"]) :] == conda["specs"]
    assert {"cuda-version=13.0", "arm-variant=*=sbsa", "shaderc", "cmake"} <= {*conda["specs"]}


@pytest.mark.parametrize("channel", ["conda-forge", "conda-forge/label/main", "file:///srv/mirror", "https://a.b/c"])
def test_channels(channel):
    assert _conda_lock.check_channel(channel) == channel


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        ("", "is a name such as conda-forge or an address such as https://mirror.example/conda-forge, got ''"),
        ("conda forge", "got 'conda forge'"),
        ("https://", "got 'https://'"),
        ("https://user:word@mirror.example/conda-forge", "a user or a token in it"),
        ("https://mirror.example/t/tk-123/conda-forge", "a user or a token in it"),
    ],
)
def test_a_channel_that_cannot_be_locked_from_is_refused(channel, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        conda_of(conda_channel=channel)
    # A secret is not repeated.
    assert "word" not in str(refused.value)
    assert "tk-123" not in str(refused.value)


def package(conda, spec, base=CHANNEL, subdir=None, **changes):
    """Return a package as micromamba describes it (`to_json` in libmamba/src/specs/package_info.cpp)."""
    name, version, build = version_and_build(spec, {})
    subdir = subdir or conda["platform"]
    file = f"{name}-{version}-{build}.conda"
    return {
        "name": name,
        "version": version,
        "build": build,
        "build_string": build,
        "build_number": 0,
        "channel": "conda-forge",
        "url": f"{base}/{subdir}/{file}",
        "fn": file,
        "subdir": subdir,
        "size": 1,
        "timestamp": 0,
        "license": "",
        "track_features": "",
        "depends": [],
        "constrains": [],
        "md5": "a" * 32,
        "sha256": SHA256,
        **changes,
    }


def answer(conda, *more, **changes):
    """Return what micromamba prints where it found packages."""
    packages = [*(package(conda, spec) for spec in conda["specs"]), package(conda, "tzdata", subdir="noarch"), *more]
    return {
        "actions": {"LINK": packages, "FETCH": packages, "PREFIX": "/nowhere"},
        "dry_run": True,
        "log_history": [],
        "prefix": "/nowhere",
        "success": True,
        **changes,
    }


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_lock_comes_of_an_answer(machine):
    conda = conda_of(["cuda", "vulkan"], machine)
    lock = _conda_lock.lock_of(json.dumps(answer(conda)), conda)
    lines = lock.splitlines()
    assert _conda_lock.conda_lock_problems(lines, conda) == []
    entries = lines[lines.index("@EXPLICIT") + 1 :]
    assert len(entries) == len(conda["specs"]) + 1
    assert all(line.endswith(f"#sha256:{SHA256}") for line in entries)
    assert f"{CHANNEL}/noarch/tzdata-1.0-h0_1.conda#sha256:{SHA256}" in entries
    assert f"# platform: {conda['platform']}" in lines
    # Another order of the same packages is the same lock, so that a second run changes nothing.
    other = answer(conda)
    other["actions"]["LINK"].reverse()
    assert _conda_lock.lock_of(json.dumps(other), conda) == lock


def test_a_lock_of_a_mirror_names_the_mirror():
    conda = conda_of("cpu", conda_channel="file:///srv/conda-forge/")
    packages = [package(conda, spec, "file:///srv/conda-forge") for spec in conda["specs"]]
    lock = _conda_lock.lock_of(json.dumps(answer(conda, actions={"LINK": packages})), conda)
    assert f"file:///srv/conda-forge/linux-64/cmake-1.0-h0_1.conda#sha256:{SHA256}" in lock.splitlines()


CPU = conda_of("cpu")
MIRROR = conda_of("cpu", conda_channel="https://mirror.example/conda-forge")


@pytest.mark.parametrize(
    ("conda", "said", "words"),
    [
        (CPU, answer(CPU, package(CPU, "zlib", sha256="")),
         "zlib has no sha256 but '': the channel conda-forge states none"),
        (CPU, answer(CPU, {key: value for key, value in package(CPU, "zlib").items() if key != "sha256"}),
         "zlib has no sha256"),
        (CPU, answer(CPU, package(CPU, "zlib", sha256="a" * 32)), "zlib has no sha256 but 'aaaa"),
        (CPU, answer(CPU, package(CPU, "zlib", "https://conda.example/bioconda")),
         "zlib is from https://conda.example/bioconda, and only conda-forge was asked"),
        # A folder of that name somewhere is not the channel, and neither is what is not fetched by https.
        (CPU, answer(CPU, package(CPU, "zlib", "https://conda.example/someone/conda-forge")), "only conda-forge was"),
        (CPU, answer(CPU, package(CPU, "zlib", "http://conda.example/conda-forge")), "only conda-forge was asked"),
        (MIRROR, answer(MIRROR),
         "is from https://conda.example/conda-forge, and only https://mirror.example/conda-forge was asked"),
        (CPU, answer(CPU, package(CPU, "zlib", subdir="linux-aarch64")),
         "zlib is for linux-aarch64, this host is linux-64"),
        (CPU, answer(CPU, package(CPU, "zlib", "https://user:word@conda.example/conda-forge")),
         "the address of zlib has a user or a token in it"),
        (CPU, answer(CPU, package(CPU, "zlib", "https://conda.example/t/tk-1/conda-forge")),
         "the address of zlib has a user or a token in it"),
        (CPU, answer(CPU, package(CPU, "zlib", url="https://conda.example/conda-forge/linux-64/zlib.zip")),
         "zlib.zip' is not the address of a package"),
        (CPU, answer(CPU, {"name": "zlib"}), "names a package by its url, got {'name': 'zlib'}"),
        (CPU, answer(CPU, "zlib"), "names a package by its url, got 'zlib'"),
        (CPU, answer(CPU, package(CPU, "cmake")), "cmake is there twice"),
        (CPU, answer(CPU, actions={"LINK": [package(CPU, "cmake")]}),
         "micromamba's answer is not the toolchain that was asked for: c-compiler is missing; cxx-compiler is missing"),
        (CPU, answer(CPU, success=False), "micromamba found no packages for c-compiler, "),
        (CPU, {"solver_problems": ["nothing provides cmake", "and no ninja"], "success": False},
         "on linux-64 in conda-forge: nothing provides cmake; and no ninja"),
        (CPU, {"log_history": [
            {"level": "warning", "message": "slow", "source": "libmamba"},
            {"level": "critical", "message": "could not resolve host\n", "source": "libmamba"},
        ]}, "in conda-forge: could not resolve host"),
        (CPU, {"success": True}, "it said nothing more"),
        (CPU, {"success": True, "actions": []}, "it said nothing more"),
        (CPU, answer(CPU, actions={"LINK": []}), "it said nothing more"),
        (CPU, [], "is a JSON object, got list"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_lock_is_refused(conda, said, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        _conda_lock.lock_of(json.dumps(said), conda)


@pytest.mark.parametrize(
    ("text", "errors", "words"),
    [
        ("", "Exec format error\n", "it said: Exec format error"),
        ("critical libmamba Broken", "", "it said: critical libmamba Broken"),
        ("", "", "it said: nothing"),
    ],
)
def test_an_answer_that_is_no_json_is_told_in_its_own_words(text, errors, words):
    with pytest.raises(ValueError, match="micromamba did not answer with JSON") as refused:
        _conda_lock.lock_of(text, CPU, errors)
    assert words in str(refused.value)


def test_what_it_wrote_to_its_errors_is_told_where_it_says_no_more():
    with pytest.raises(ValueError, match="in conda-forge: Killed"):
        _conda_lock.lock_of("{}", CPU, "Killed\n")
