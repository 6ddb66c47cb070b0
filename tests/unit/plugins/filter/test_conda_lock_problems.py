# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter conda_lock_problems: what a template sees."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.filter.conda_lock_problems import FilterModule
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _toolchain

conda_lock_problems = FilterModule().filters()["conda_lock_problems"]
NAMES = ("c-compiler", "cxx-compiler", "cmake", "ninja", "git", "ccache", "openssl", "pkg-config")
CHANNEL = "https://conda.example/conda-forge"
LOCK = "\n".join(["@EXPLICIT", *(f"{CHANNEL}/linux-64/{name}-1.0.0-0.conda#{'a' * 32}" for name in NAMES)])


def test_a_lock_for_processors_is_none_for_cuda():
    cpu, cuda = (_toolchain.toolchain_plan(44, backend, method="conda")["conda"] for backend in ("cpu", "cuda"))
    assert conda_lock_problems(LOCK, cpu) == []
    assert conda_lock_problems(LOCK, cuda)[:2] == ["cuda-version is missing", "cuda-nvcc is missing"]


@pytest.mark.parametrize(
    ("lock", "conda", "words"),
    [
        (["@EXPLICIT"], {"platform": "linux-64", "specs": []}, "the lock is text, got list"),
        (LOCK, {"platform": "linux-64"}, "conda has platform and specs"),
        (LOCK, None, "conda has platform and specs"),
    ],
)
def test_wrong_input_is_a_filter_error(lock, conda, words):
    with pytest.raises(AnsibleFilterError, match=words):
        conda_lock_problems(lock, conda)
