# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter gtt_budget: what a template sees."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.filter.gtt_budget import FilterModule

GIB = 1024**3
gtt_budget = FilterModule().filters()["gtt_budget"]


def test_returns_plain_values():
    assert gtt_budget(125 * GIB) == {
        "gtt_bytes": 120795955200,
        "gttsize_mib": 115200,
        "pages_limit": 29491200,
        "kernel_args": {"ttm.pages_limit": "29491200"},
        "warnings": [],
    }


def test_none_means_absent():
    assert gtt_budget(64 * GIB, wanted_bytes=None, reserve_bytes=None) == gtt_budget(64 * GIB)


def test_an_error_is_a_filter_error_with_its_cause():
    with pytest.raises(AnsibleFilterError, match="gtt_budget: a GTT of 60 GiB") as refused:
        gtt_budget(64 * GIB, wanted_bytes=60 * GIB)
    assert isinstance(refused.value.__cause__, ValueError)
