# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.filter.build_kind import FilterModule

build_kind = FilterModule().filters()["build_kind"]


@pytest.mark.parametrize(
    ("settings", "host", "said"),
    [
        ("x", {}, "build_kind needs settings as a mapping, got str: 'x'"),
        ({}, None, "build_kind needs host as a mapping, got NoneType: None"),
        ({"backends": ["cpu"]}, {}, "build_kind: settings lack"),
    ],
)
def test_what_is_refused(settings, host, said):
    with pytest.raises(AnsibleFilterError, match=said):
        build_kind(settings, host)
