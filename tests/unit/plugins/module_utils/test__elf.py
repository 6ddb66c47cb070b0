# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _elf
from ansible_collections.llamafleet.turboquant.tests.unit.plugins.module_utils.elf_maker import make_elf
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("order", ["<", ">"])
def test_everything_is_read(order):
    data = make_elf(
        machine="aarch64",
        soname="libllama.so.0",
        needed=["libggml.so.0", "libc.so.6"],
        run_path="$ORIGIN/../lib:/opt/rocm/lib",
        versions_needed={"libc.so.6": ["GLIBC_2.17", "GLIBC_2.38"], "libstdc++.so.6": ["GLIBCXX_3.4.32"]},
        versions_defined=["libllama.so.0", "LLAMA_1"],
        order=order,
    )
    assert _elf.parse(data) == _elf.Elf(
        machine="aarch64",
        soname="libllama.so.0",
        needed=["libggml.so.0", "libc.so.6"],
        run_path=["$ORIGIN/../lib", "/opt/rocm/lib"],
        versions_needed=["GLIBCXX_3.4.32", "GLIBC_2.17", "GLIBC_2.38"],
        versions_defined=["LLAMA_1", "libllama.so.0"],
    )


def test_the_interpreter_that_runs_this():
    program = Path(sys.executable).resolve()
    found = _elf.read(program)
    assert found.machine == os.uname().machine
    # Every dynamically linked program of a glibc system asks for its C library.
    assert any(name.startswith("libc.so.6") for name in found.needed)
    assert _elf.highest(found.versions_needed, "GLIBC") is not None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no ELF file"),
        (b"#!/bin/sh\n", "no ELF file"),
        (b"\x7fELF\x02\x01", "cut short: 6 bytes"),
        (b"\x7fELF\x01\x01" + bytes(60), "a 32-bit ELF file"),
        (b"\x7fELF\x02\x07" + bytes(60), "byte order 7"),
    ],
)
def test_what_is_no_elf_file_is_refused(tmp_path, data, said):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(_elf.ElfError, match=said) as caught:
        _elf.read(path)
    assert str(path) in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_never_gets_past_the_reader(data):
    whole = bytearray(make_elf(needed=["libc.so.6"], versions_needed={"libc.so.6": ["GLIBC_2.34"]}))
    for _dummy in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"damaged-{os.getpid()}"
    path.write_bytes(bytes(whole))
    # Either it is read, or it is refused in the one way that callers know.
    with contextlib.suppress(_elf.ElfError):
        assert isinstance(_elf.read(path), _elf.Elf)
    path.unlink()


@pytest.mark.parametrize(
    ("versions", "family", "expected"),
    [
        (["GLIBC_2.9", "GLIBC_2.38", "GLIBC_2.4"], "GLIBC", "2.38"),  # by number, not by letters
        (["GLIBCXX_3.4.9", "GLIBCXX_3.4.32", "GLIBC_2.38"], "GLIBCXX", "3.4.32"),
        (["GLIBC_PRIVATE", "GLIBC_ABI_DT_RELR"], "GLIBC", None),
        ([], "GLIBC", None),
    ],
)
def test_highest(versions, family, expected):
    assert _elf.highest(versions, family) == expected


def test_a_version_that_is_none():
    with pytest.raises(ValueError, match=r"such as 2\.34, and not '2\.x'"):
        _elf.version_tuple("2.x")
