# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _build_host, _build_plan

FEDORA = 'NAME="Fedora Linux"\nVERSION="44 (Forty Four)"\nID=fedora\nVERSION_ID=44\n'
# Debian's testing suite, 2026-11.
TESTING = 'PRETTY_NAME="Debian GNU/Linux forky/sid"\nVERSION_CODENAME=forky\nID=debian\n'

# Last lines of nvcc 13.3's --version.
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.3, V13.3.73\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FEDORA, {"id": "fedora", "version": "44"}),
        (TESTING, {"id": "debian", "version": "forky"}),
        ("", {"id": "linux", "version": "rolling"}),
    ],
)
def test_os_release(text, expected):
    assert _build_host.os_release(text) == expected


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with no programs but those a test puts there; `answers` says what they print."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(FEDORA, encoding="utf-8")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(_build_host._build_job, "STANDARD_PATH", str(folder))
    # This machine may have the real ones.
    monkeypatch.setattr(_build_host, "NVCC", str(folder / "cuda-nvcc"))
    monkeypatch.setattr(_build_host, "HIPCONFIG", str(folder / "rocm-hipconfig"))
    answers = {}

    def run(argv, environment):
        assert environment["PATH"] == str(folder)
        return answers.get((Path(argv[0]).name, argv[1]), (127, "no such question"))

    def put(name, version="", target=""):
        (folder / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (folder / name).chmod(0o755)
        answers[(name, "--version")] = (0, version)
        answers[(name, "-dumpmachine")] = (0, target)
        return str(folder / name)

    put("cmake", "cmake version 4.1.0\n\nCMake suite")
    put("ninja", "1.13")
    put("gcc", "gcc (GCC) 16.2.1 20260901\nCopyright", "x86_64-redhat-linux\n")
    put("g++", "g++ (GCC) 16.2.1 20260901\nCopyright", "x86_64-redhat-linux\n")
    return type(
        "Machine", (), {"root": tmp_path, "run": staticmethod(run), "put": staticmethod(put), "answers": answers}
    )


def probe(machine, backends=("cpu",), options=None, environment=None, host_compiler=""):
    return _build_host.probe(machine.run, backends, options or {}, environment or {}, host_compiler, machine.root)


def test_a_cpu_builder(machine):
    found = probe(machine, environment={"B": "2", "A": "1"})
    assert found["cmake"] == "4.1.0"
    assert found["distribution"] == {"id": "fedora", "version": "44"}
    assert found["compilers"]["cxx"] == {
        "path": str(machine.root / "bin/g++"),
        "version": "g++ (GCC) 16.2.1 20260901",
        "target": "x86_64-redhat-linux",
    }
    assert found["programs"]["ccache"] == ""
    assert list(found["environment"]) == ["A", "B"]


def test_compilers_of_the_toolchain_are_the_ones_described(machine):
    gcc = machine.put("gcc-15", "gcc-15 (GCC) 15.2.1", "x86_64-redhat-linux")
    gxx = machine.put("g++-15", "g++-15 (GCC) 15.2.1", "x86_64-redhat-linux")
    found = probe(machine, options={"CMAKE_C_COMPILER": gcc, "CMAKE_CXX_COMPILER": gxx})
    assert found["compilers"]["c"]["version"] == "gcc-15 (GCC) 15.2.1"
    assert found["compilers"]["cxx"]["path"] == gxx


@pytest.mark.parametrize("host_compiler", ["", "g++-15"])
def test_nvcc_and_its_host_compiler(machine, host_compiler):
    machine.put("nvcc", NVCC)
    machine.put("g++-15", "g++-15 (GCC) 15.2.1", "x86_64-redhat-linux")
    found = probe(machine, ["cpu", "cuda"], host_compiler=host_compiler and str(machine.root / "bin" / host_compiler))
    assert found["compilers"]["cuda"]["version"] == "Cuda compilation tools, release 13.3, V13.3.73"
    assert found["compilers"]["cuda_host"]["path"] == str(machine.root / "bin" / (host_compiler or "g++"))


def test_the_hip_compiler_is_the_one_that_hipconfig_names(machine):
    machine.put("hipconfig")
    clang = machine.put("clang++", "clang version 20.0.0", "x86_64-redhat-linux-gnu")
    machine.answers[("hipconfig", "-l")] = (0, f"{machine.root}/bin\n")
    assert probe(machine, ["cpu", "rocm"])["compilers"]["hip"]["path"] == clang


@pytest.mark.parametrize(
    ("missing", "backends", "said"),
    [
        ("cmake", ["cpu"], "CMake is missing: none of cmake is in"),
        ("ninja", ["cpu"], "Ninja is missing: none of ninja, ninja-build is in"),
        ("g++", ["cpu"], "a C.. compiler is missing"),
        ("none", ["cpu", "cuda"], "nvcc, the CUDA compiler, is missing"),
        ("none", ["cpu", "rocm"], "hipconfig of ROCm is missing"),
        ("none", ["cpu", "vulkan"], "glslc, the shader compiler, is missing"),
    ],
)
def test_what_is_missing_is_named_with_the_role_that_brings_it(machine, missing, backends, said):
    (machine.root / "bin" / missing).unlink(missing_ok=True)
    with pytest.raises(_build_host.ToolMissing, match=said) as caught:
        probe(machine, backends)
    assert "run the role toolchain first" in str(caught.value)


def test_a_compiler_that_does_not_run(machine):
    machine.answers[("gcc", "--version")] = (1, "cannot execute: required file not found")
    with pytest.raises(_build_host.ToolMissing, match="exit code 1: cannot execute"):
        probe(machine)
    machine.answers[("gcc", "--version")] = (0, "\n")
    with pytest.raises(_build_host.ToolMissing, match="did not say its version"):
        probe(machine)


def headers(root, minor, patch, prefix="usr"):
    folder = root / prefix / "include/vulkan"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vulkan_core.h").write_text(
        f"#define VK_HEADER_VERSION {patch}\n"
        f"#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, {minor}, VK_HEADER_VERSION)\n",
        encoding="utf-8",
    )


def test_vulkan_headers(machine):
    machine.put("glslc", "shaderc v2026.1\n")
    with pytest.raises(_build_host.ToolMissing, match="Vulkan headers are missing"):
        probe(machine, ["cpu", "vulkan"])
    headers(machine.root, 4, 341)
    found = probe(machine, ["cpu", "vulkan"])["compilers"]["glslc"]
    assert (found["version"], found["headers"]) == ("shaderc v2026.1", "1.4.341")
    headers(machine.root, 3, 272)
    assert _build_host.vulkan_headers({}, machine.root) == "1.3.272"
    # Debian 12 has these, and ggml-vulkan.cpp does not compile with them.
    headers(machine.root, 3, 239)
    with pytest.raises(_build_plan.BuildError, match=r"are 1\.3\.239, and .* needs 1\.3\.272 or newer"):
        probe(machine, ["cpu", "vulkan"])


def test_vulkan_headers_of_a_prefix(machine):
    prefix = {"CMAKE_PREFIX_PATH": "/opt/conda;/opt/more"}
    headers(machine.root, 3, 239)
    with pytest.raises(_build_host.ToolMissing, match="in /opt/conda/include or /opt/more/include"):
        _build_host.vulkan_headers(prefix, machine.root)
    headers(machine.root, 4, 341, "opt/more")
    assert _build_host.vulkan_headers(prefix, machine.root) == "1.4.341"
    headers(machine.root, 4, 350, "opt/named")
    assert _build_host.vulkan_headers({**prefix, "Vulkan_INCLUDE_DIR": "/opt/named/include"}, machine.root) == "1.4.350"


def test_rocwmma_version(tmp_path):
    assert _build_host.rocwmma_version({}, tmp_path) is None
    folder = tmp_path / "usr/include/rocwmma"
    folder.mkdir(parents=True)
    (folder / "rocwmma-version.hpp").write_text(
        "#define ROCWMMA_VERSION_MAJOR  2\n#define ROCWMMA_VERSION_MINOR  0\n#define ROCWMMA_VERSION_PATCH 1\n",
        encoding="utf-8",
    )
    assert _build_host.rocwmma_version({}, tmp_path) == (2, 0, 1)
    assert _build_host.rocwmma_version({"ROCM_PATH": "/opt/other"}, tmp_path) == (2, 0, 1)


def test_has_openssl(tmp_path):
    assert not _build_host.has_openssl({}, tmp_path)
    (tmp_path / "usr/include/openssl").mkdir(parents=True)
    (tmp_path / "usr/include/openssl/ssl.h").write_text("", encoding="utf-8")
    assert _build_host.has_openssl({}, tmp_path)
    # A toolchain with a prefix of its own cannot use the system's.
    prefix = {"CMAKE_PREFIX_PATH": "/opt/conda"}
    assert not _build_host.has_openssl(prefix, tmp_path)
    (tmp_path / "opt/conda/include/openssl").mkdir(parents=True)
    (tmp_path / "opt/conda/include/openssl/ssl.h").write_text("", encoding="utf-8")
    assert _build_host.has_openssl(prefix, tmp_path)
    assert not _build_host.has_openssl({"OPENSSL_ROOT_DIR": "/opt/other"}, tmp_path)


def test_free_room_of_a_folder_that_is_not_there_yet(tmp_path):
    assert _build_host.free_mib(tmp_path / "a/b/c") == _build_host.free_mib(tmp_path) > 0
