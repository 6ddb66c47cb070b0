# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For which GPUs rocWMMA is right."""

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _rocwmma


@pytest.mark.parametrize(
    ("target", "version", "said"),
    [
        ("gfx942", (2, 0, 0), "wrong results on CDNA (gfx942)"),
        ("gfx90a:xnack-", (2, 0, 0), "wrong results on CDNA (gfx90a)"),
        ("gfx942", (2, 0, 1), ""),
        ("gfx942", (2, 1, 0), ""),
        ("gfx942", (1, 7, 0), ""),
        ("gfx1201", (1, 7, 0), "does not know RDNA4"),
        ("gfx1201", (2, 0, 0), ""),
        ("gfx1100", (1, 7, 0), ""),
        ("gfx1151", (2, 0, 0), ""),
        # Neither has instructions for matrices, whatever the version.
        ("gfx1030", (2, 1, 0), "gfx1030 has no matrix instructions"),
        ("gfx906", (1, 7, 0), "gfx906 has no matrix instructions"),
    ],
)
def test_where_it_is_right(target, version, said):
    got = _rocwmma.problem(target, version)
    assert said in got
    assert bool(said) is bool(got)


@pytest.mark.parametrize(
    ("rocm", "version"),
    [
        ("6.3.1", (1, 0, 0)),
        ("6.4.2", (1, 7, 0)),
        ("7.0", (2, 0, 0)),
        ("7.1.0", (2, 0, 0)),
        ("7.1.1", (2, 1, 0)),
        ("7.2.4", (2, 2, 0)),
        ("10.1.0", (2, 2, 0)),
    ],
)
def test_which_one_a_rocm_brings(rocm, version):
    assert _rocwmma.brought_by(rocm) == version
