# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A limit is eased on a slower machine by as much as it is slower, at most by twice, and on no other."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
spec = importlib.util.spec_from_file_location("llamafleet_bench_yardstick", BENCH / "yardstick.py")
yardstick = importlib.util.module_from_spec(spec)
spec.loader.exec_module(yardstick)


def clock(*taken: float):
    """A clock by which the turns take these seconds, one after the other."""
    return itertools.chain.from_iterable((0.0, seconds) for seconds in taken).__next__


@pytest.mark.parametrize(("times", "slowness"), [(0.5, 1.0), (1.0, 1.0), (1.5, 1.5), (4.0, 2.0)])
def test_slowness(times, slowness):
    assert yardstick.slowness(clock(*[times * yardstick.REFERENCE_SECONDS] * 7)) == pytest.approx(slowness)


def test_a_neighbour_that_disturbs_a_few_turns_does_not_count():
    same = yardstick.REFERENCE_SECONDS
    assert yardstick.slowness(clock(same, 9 * same, same, 9 * same, same, 9 * same, same)) == pytest.approx(1.0)
