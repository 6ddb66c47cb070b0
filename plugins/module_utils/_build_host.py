# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a builder: its compilers and their versions, its distribution, its room.

Private to the collection: it may change at any time. Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import _build_job, _build_plan

# argv and environment in; exit code and output (both streams) out.
Run = Callable[[Sequence[str], "dict[str, str]"], "tuple[int, str]"]

VULKAN_HEADERS = (1, 3, 272)

# Toolkits that do not put their programs on the PATH.
NVCC = "/usr/local/cuda/bin/nvcc"
HIPCONFIG = "/opt/rocm/bin/hipconfig"


class ToolMissing(Exception):
    """A program that the build needs is not there: the role toolchain brings it."""


def os_release(text: str) -> dict[str, str]:
    """Return identity and release of a distribution from its os-release file."""
    values = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([A-Z_]+)=(.*)", line.strip())
        if match is not None:
            values[match.group(1)] = match.group(2).strip("\"'")
    # Debian's testing has no version, only a code name.
    return {
        "id": values.get("ID", "linux"),
        "version": values.get("VERSION_ID") or values.get("VERSION_CODENAME") or "rolling",
    }


def find_program(name: str, path: str) -> str:
    """Return the absolute path of a program, or an empty string."""
    return shutil.which(name, path=path) or ""


def need_program(names: Sequence[str], path: str, what: str) -> str:
    """Return the first of the programs that is there."""
    for name in names:
        found = find_program(name, path)
        if found:
            return found
    raise ToolMissing(f"{what} is missing: none of {', '.join(names)} is in {path}; run the role toolchain first")


def version_line(run: Run, argv: Sequence[str], environment: dict[str, str], pattern: str = r"\S") -> str:
    """Return the line of a program's output that says which one it is."""
    rc, output = run(argv, environment)
    if rc != 0:
        raise ToolMissing(f"{' '.join(argv)} ended with exit code {rc}: {output.strip()[-300:]}")
    for line in output.splitlines():
        if re.search(pattern, line):
            return line.strip()
    raise ToolMissing(f"{' '.join(argv)} did not say its version: {output.strip()[-300:]}")


def compiler(run: Run, program: str, environment: dict[str, str]) -> dict[str, str]:
    """Describe one compiler of the C family."""
    return {
        "path": program,
        "version": version_line(run, [program, "--version"], environment),
        "target": version_line(run, [program, "-dumpmachine"], environment),
    }


def probe(
    run: Run,
    backends: Sequence[str],
    options: dict[str, str],
    toolchain_environment: dict[str, str],
    host_compiler: str,
    root: Path = Path("/"),
) -> dict[str, Any]:
    """Describe everything on a builder that decides what a build comes out as, and the programs it uses."""
    environment = _build_job.build_environment(toolchain_environment, dict(os.environ))
    path = environment["PATH"]
    programs = {
        "cmake": need_program(["cmake"], path, "CMake"),
        "ninja": need_program(["ninja", "ninja-build"], path, "Ninja"),
        "git": find_program("git", path),
        "ccache": find_program("ccache", path),
    }
    c_compiler = options.get("CMAKE_C_COMPILER") or need_program(["gcc", "cc"], path, "a C compiler")
    cxx_compiler = options.get("CMAKE_CXX_COMPILER") or need_program(["g++", "c++"], path, "a C++ compiler")
    compilers = {
        "c": compiler(run, need_program([c_compiler], path, "the C compiler"), environment),
        "cxx": compiler(run, need_program([cxx_compiler], path, "the C++ compiler"), environment),
    }
    if "cuda" in backends:
        nvcc = options.get("CMAKE_CUDA_COMPILER") or "nvcc"
        nvcc = need_program([nvcc, NVCC], path, "nvcc, the CUDA compiler,")
        compilers["cuda"] = {
            "path": nvcc,
            "version": version_line(run, [nvcc, "--version"], environment, r"release \d"),
        }
        host = options.get("CMAKE_CUDA_HOST_COMPILER") or host_compiler or compilers["cxx"]["path"]
        compilers["cuda_host"] = compiler(run, need_program([host], path, "nvcc's host compiler"), environment)
    if "rocm" in backends:
        hip = options.get("CMAKE_HIP_COMPILER") or environment.get("HIPCXX") or ""
        if not hip:
            hipconfig = need_program(["hipconfig", HIPCONFIG], path, "hipconfig of ROCm")
            hip = version_line(run, [hipconfig, "-l"], environment).rstrip("/") + "/clang++"
        compilers["hip"] = compiler(run, need_program([hip], path, "the HIP compiler"), environment)
    if "vulkan" in backends:
        glslc = options.get("Vulkan_GLSLC_EXECUTABLE") or "glslc"
        glslc = need_program([glslc], path, "glslc, the shader compiler,")
        compilers["glslc"] = {
            "path": glslc,
            "version": version_line(run, [glslc, "--version"], environment),
            "headers": vulkan_headers(options, root),
        }
    return {
        "architecture": os.uname().machine,
        "cmake": version_line(run, [programs["cmake"], "--version"], environment).replace("cmake version ", ""),
        "compilers": compilers,
        "distribution": os_release((root / "etc/os-release").read_text(encoding="utf-8")),
        "environment": dict(sorted(toolchain_environment.items())),
        "glibc": (os.confstr("CS_GNU_LIBC_VERSION") or "unknown").replace("glibc ", ""),
        "programs": programs,
    }


def include_folders(options: dict[str, str]) -> list[str]:
    """Return where a build finds headers: below the prefixes that CMake is given, else where every compiler looks.

    A toolchain with a prefix of its own has its own C library too, so the system's headers are none of its.
    """
    prefixes = [prefix for prefix in options.get("CMAKE_PREFIX_PATH", "").split(";") if prefix]
    return [f"{prefix}/include" for prefix in prefixes] or ["/usr/local/include", "/usr/include"]


def vulkan_headers(options: dict[str, str], root: Path = Path("/")) -> str:
    """Return the version of the Vulkan headers, or refuse those that ggml's Vulkan backend does not compile with."""
    given = options.get("Vulkan_INCLUDE_DIR")
    folders = [given] if given else include_folders(options)
    for folder in folders:
        header = root / folder.lstrip("/") / "vulkan" / "vulkan_core.h"
        if not header.is_file():
            continue
        text = header.read_text(encoding="utf-8", errors="replace")
        patch = re.search(r"#define VK_HEADER_VERSION (\d+)", text)
        whole = re.search(r"#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION\(\d+, (\d+), (\d+),", text)
        if patch is None or whole is None:
            raise ToolMissing(f"{header} does not say its version")
        version = (int(whole.group(1)), int(whole.group(2)), int(patch.group(1)))
        shown = ".".join(str(part) for part in version)
        if version < VULKAN_HEADERS:
            raise _build_plan.BuildError(
                f"the Vulkan headers are {shown}, and ggml's Vulkan backend needs "
                f"{'.'.join(str(part) for part in VULKAN_HEADERS)} or newer (vk::LayerSettingEXT): "
                "update vulkan-headers"
            )
        return shown
    raise ToolMissing(
        f"the Vulkan headers are missing (vulkan/vulkan_core.h in {' or '.join(folders)}): run the role toolchain first"
    )


def rocwmma_version(environment: dict[str, str], root: Path = Path("/")) -> tuple[int, int, int] | None:
    """Return the version of rocWMMA's headers, or None where there are none."""
    for prefix in (environment.get("ROCM_PATH", ""), "/usr", "/opt/rocm"):
        header = root / prefix.lstrip("/") / "include/rocwmma/rocwmma-version.hpp"
        if prefix and header.is_file():
            text = header.read_text(encoding="utf-8", errors="replace")
            found = [re.search(rf"ROCWMMA_VERSION_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
            numbers = [int(match.group(1)) for match in found if match is not None]
            if len(numbers) == 3:
                return numbers[0], numbers[1], numbers[2]
    return None


def has_openssl(options: dict[str, str], root: Path = Path("/")) -> bool:
    """Say whether the headers of OpenSSL are there."""
    given = options.get("OPENSSL_ROOT_DIR")
    folders = [f"{given}/include"] if given else include_folders(options)
    return any((root / folder.lstrip("/") / "openssl" / "ssl.h").is_file() for folder in folders)


def free_mib(folder: Path) -> int:
    """Return the room on the file system that a folder is, or will be, on."""
    place = folder
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize // (1024 * 1024)
