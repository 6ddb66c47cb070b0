# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter conda_lock: what a template sees."""

from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.filter.conda_lock import FilterModule

conda_lock = FilterModule().filters()["conda_lock"]
CONDA = {"channel": "conda-forge", "platform": "linux-64", "specs": ["cmake"]}
URL = "https://conda.example/conda-forge/linux-64/cmake-4.1-h0_0.conda"


def test_a_lock_is_text():
    answer = json.dumps({"success": True, "actions": {"LINK": [{"name": "cmake", "url": URL, "sha256": "a" * 64}]}})
    lock = conda_lock(answer, CONDA)
    assert lock.endswith(f"@EXPLICIT\n{URL}#sha256:{'a' * 64}\n")


@pytest.mark.parametrize(
    ("answer", "conda", "options", "words"),
    [
        ({}, CONDA, {}, "what micromamba said is text, got dict"),
        ("{}", CONDA, {"errors": None}, "what micromamba said is text, got NoneType"),
        ("{}", {"platform": "linux-64", "specs": []}, {}, "conda has channel, platform and specs"),
        ("{}", None, {}, "conda has channel, platform and specs"),
        ("", CONDA, {"errors": "Killed"}, r"conda_lock: micromamba did not answer with JSON .* it said: Killed"),
    ],
)
def test_wrong_input_is_a_filter_error(answer, conda, options, words):
    with pytest.raises(AnsibleFilterError, match=words):
        conda_lock(answer, conda, **options)
