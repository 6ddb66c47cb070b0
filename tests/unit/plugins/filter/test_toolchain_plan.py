# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter toolchain_plan: what a template sees."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.filter.toolchain_plan import FilterModule

toolchain_plan = FilterModule().filters()["toolchain_plan"]


def plain(value):
    """Say whether a value is made only of what a template can carry."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return isinstance(value, (str, bool, int))


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("cpu", {}),
        ("vulkan", {}),
        ("rocm", {"gpu_targets": ["gfx1151"]}),
        ("cuda", {"gpu_targets": ["8.9"]}),
        ("cuda", {"gpu_targets": ["8.9"], "cuda_version": "12.4"}),
        ("cuda", {"gpu_targets": ["8.9"], "method": "conda"}),
    ],
)
def test_a_plan_is_made_of_plain_values(backend, options):
    assert plain(toolchain_plan(44, backend, **options))


def test_wrong_input_is_a_filter_error_with_its_cause():
    with pytest.raises(AnsibleFilterError, match="toolchain_plan: backend is one of") as refused:
        toolchain_plan(44, "metal")
    assert isinstance(refused.value.__cause__, ValueError)


def test_an_unknown_option_is_a_filter_error():
    with pytest.raises(AnsibleFilterError, match="cuda_verison"):
        toolchain_plan(44, "cuda", cuda_verison="13.1")
