# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The graph, the scheduler and the allocator on graphs small enough to reckon by hand."""

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _ggml as gg


def chain(length, n=1024):
    """x -> norm -> norm ..., where each result is used once."""
    x = gg.new("f32", n)
    x.flags = gg.INPUT
    g = gg.Graph()
    cur = x
    for _step in range(length):
        cur = gg.op("norm", cur.ne, cur)
    cur.flags |= gg.OUTPUT
    g.expand(cur)
    return g


def on_cpu(g):
    return gg.lay_out(g, gg.Scheduler(0, lambda backend, t: True, True, False), [32], [False])


@pytest.mark.parametrize("length", [2, 3, 10])
def test_a_chain_needs_two_tensors_at_a_time(length):
    layout = on_cpu(chain(length))
    assert layout.sizes == (2 * 4096,)
    assert layout.nodes == length
    assert layout.splits == 1


def test_an_operation_in_place_takes_its_parents_memory():
    x = gg.new("f32", 256)
    x.flags = gg.INPUT
    g = gg.Graph()
    y = gg.op("norm", x.ne, x)
    g.expand(gg.like("scale", gg.like("scale", y)))
    assert on_cpu(g).sizes == (2 * 1024,)


def test_views_share_the_memory_of_their_root():
    x = gg.new("f32", 64, 4)
    x.flags = gg.INPUT
    g = gg.Graph()
    y = gg.op("norm", x.ne, x)
    part = gg.view_2d(y, 64, 2, y.nb[1])
    g.expand(gg.cont(gg.transpose(part)))
    assert [t.op for t in g.nodes] == ["norm", "view", "transpose", "cont"]
    # the last result fits where x was
    assert on_cpu(g).sizes == (1024 + 1024,)


def test_a_quantized_row_is_padded_on_cuda_only():
    t = gg.new("q8_0", 256)
    assert gg._Buffer(128, True, gg.Range()).size_of(t) == 256 // 32 * 34 + 256 // 32 * 34 + (-(2 * 272) % 128)
    assert gg._Buffer(32, False, gg.Range()).size_of(t) == 288


def test_a_device_gets_copies_of_what_lies_in_ram():
    weight = gg.new("f32", 64, 64)
    weight.weight, weight.buf = True, 0
    x = gg.new("f32", 64, 8)
    x.flags = gg.INPUT
    g = gg.Graph()
    out = gg.mul_mat(weight, x)
    out.flags |= gg.OUTPUT
    g.expand(out)
    layout = gg.lay_out(g, gg.Scheduler(1, lambda backend, t: True, True, False), [128, 32], [True, False])
    assert layout.sizes == (64 * 8 * 4 * 2, 64 * 8 * 4)


def test_more_than_thirty_inputs_abort():
    g = gg.Graph()
    total = None
    weight = gg.new("f32", 8, 8)
    weight.weight, weight.buf = True, 0
    for _step in range(40):
        x = gg.new("f32", 8)
        x.flags = gg.INPUT
        y = gg.new("f32", 8)
        y.flags = gg.INPUT
        both = gg.op("concat", (8, 1, 1, 1), x, y)
        total = both if total is None else gg.like("add", total, gg.mul_mat(weight, both))
    g.expand(total)
    with pytest.raises(gg.SplitInputsError):
        gg.lay_out(g, gg.Scheduler(1, lambda backend, t: True, True, True), [128, 32], [True, False])


def test_sizes_are_told_with_the_range_where_they_hold():
    def graph(cells):
        mask = gg.new("f32", cells, 8)
        mask.flags = gg.INPUT
        x = gg.new("f32", 4096, 8)
        x.flags = gg.INPUT
        g = gg.Graph()
        g.expand(gg.cast(mask, "f16"))
        g.expand(gg.op("norm", x.ne, x))
        return g

    small, large = graph(1024), graph(1024 + 256)
    gg.grow(small, large)
    layout = on_cpu(small)
    for steps in (1, 5, 40):
        if layout.low <= steps <= layout.high:
            assert on_cpu(graph(1024 + 256 * steps)).sizes[0] == layout.sizes[0] + layout.slopes[0] * steps
    assert layout.low <= 0 <= layout.high
