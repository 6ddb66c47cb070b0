# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a release has to be. What a real server says at the gate is seen by the scenarios."""

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_gate


def measuring(*rates):
    """Return a measurement that gives these rates one after the other, and what is left of them."""
    left = list(rates)
    return left, lambda: {"tokens_per_second": left.pop(0), "tokens": 16}


@pytest.mark.parametrize(
    ("settings", "before", "rates", "left", "slow"),
    [
        ({}, 100.0, [0.1], [], ""),
        ({"min_tps": 0.0, "min_tps_percent": 0.0}, None, [0.0], [], ""),
        ({"min_tps": 25.0}, None, [25.0, 99.0], [99.0], ""),
        ({"min_tps": 25.0}, 100.0, [3.0, 26.0, 99.0], [99.0], ""),
        ({"min_tps": 25.0}, None, [3.0, 9.5, 4.0, 9.0], [9.0],
         "decodes 9.5 tokens/s, below the 25 that min_tps asks for"),
        ({"min_tps_percent": 50.0}, None, [0.1], [], ""),
        ({"min_tps_percent": 50.0}, 80.0, [40.0], [], ""),
        (
            {"min_tps_percent": 50.0}, 80.0, [39.9, 12.0, 13.0], [],
            "decodes 39.9 tokens/s, below the 40 that are 50% (min_tps) of the 80 of the release before",
        ),
    ],
)  # fmt: skip
def test_a_busy_moment_is_no_slow_release(settings, before, rates, left, slow):
    remaining, measure = measuring(*rates)
    answer, why = _server_gate.fast_enough(measure, settings, before)
    assert (remaining, why) == (left, slow)
    assert answer["tokens_per_second"] == max(rates[: len(rates) - len(left)])
