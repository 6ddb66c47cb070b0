# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The graph, the scheduler and the allocator on graphs small enough to reckon by hand."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _ggml as gg
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _graphs as graphs
from hypothesis import given, settings
from hypothesis import strategies as st


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


class Sizes(NamedTuple):
    sizes: tuple
    splits: int


def lay_out(g, scheduler, aligns, padded, known=(1,)):
    programs = gg.lay_out(g, scheduler, padded, gg.Judgements(known))
    return Sizes(tuple(p.peak(a, known) for p, a in zip(programs, aligns)), len(scheduler.copied))


def on_cpu(g, known=(1,)):
    return lay_out(g, gg.Scheduler(0, lambda backend, t: True, True, False), [32], [False], known)


@pytest.mark.parametrize("length", [2, 3, 10])
def test_a_chain_needs_two_tensors_at_a_time(length):
    g = chain(length)
    assert on_cpu(g).sizes == (2 * 4096,)
    assert len(g.nodes) == length


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
    for pads, align, want in ((True, 128, 640), (False, 32, 288)):
        recorder = gg._Recorder([pads], gg.Judgements((1,)))
        recorder.allocate(gg.new("q8_0", 256), 0)  # 272 bytes, and as many for the missing 256 values
        assert recorder.program(0).peak(align, (1,)) == want


def test_a_quantized_row_of_cells_is_padded_by_the_cells_at_hand():
    """256 cells lack as many to a row of 512, and 512 cells lack none: one layout does not serve both."""
    for cells, want, other in ((256, 544, 512), (512, 544, 768), (768, 1088, 1024)):
        known = gg.monomials(0, cells, 0)
        judge = gg.Judgements(known)
        recorder = gg._Recorder([True], judge)
        recorder.allocate(gg.new("q8_0", gg.BASE_CELLS), 0)
        assert recorder.program(0).peak(1, known) == want
        assert judge.conditions().hold(known)
        assert judge.conditions().hold(gg.monomials(0, cells + 512, 0))
        assert not judge.conditions().hold(gg.monomials(0, other, 0))


def test_a_row_of_tokens_is_not_cut_into_blocks():
    with pytest.raises(gg.NumbersNeededError):
        gg.new("q8_0", gg.TOKENS)


def test_a_device_gets_copies_of_what_lies_in_ram():
    weight = gg.new("f32", 64, 64)
    weight.weight, weight.buf = True, 0
    x = gg.new("f32", 64, 8)
    x.flags = gg.INPUT
    g = gg.Graph()
    out = gg.mul_mat(weight, x)
    out.flags |= gg.OUTPUT
    g.expand(out)
    layout = lay_out(g, gg.Scheduler(1, lambda backend, t: True, True, False), [128, 32], [True, False])
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
        gg.lay_out(g, gg.Scheduler(1, lambda backend, t: True, True, True), [True, False], gg.Judgements((1,)))


@pytest.mark.parametrize(("tokens", "cells"), [(32, 256), (512, 4096), (512, 262144), (2048, 1024)])
def test_one_graph_with_unknowns_serves_all_tokens_and_cells(tokens, cells):
    def graph(n, c):
        mask = gg.new("f32", c, n)
        mask.flags = gg.INPUT
        x = gg.new("f32", 4096, n)
        x.flags = gg.INPUT
        g = gg.Graph()
        g.expand(gg.cast(mask, "f16"))
        g.expand(gg.op("norm", x.ne, x))
        return g

    general = on_cpu(graph(gg.TOKENS, gg.BASE_CELLS), gg.monomials(tokens, cells, 0))
    assert general.sizes == on_cpu(graph(tokens, cells)).sizes


def test_digits_of_a_size_may_be_negative():
    size = 7 - 3 * gg.TOKENS + 2 * gg.TOKENS * gg.SWA_CELLS
    assert gg.terms(size) == ((0, 7), (1, -3), (6, 2 * gg.CELLS_STEP))
    assert gg.evaluate(gg.terms(size), gg.monomials(10, 512, 1024)) == 7 - 30 + 20480
    with pytest.raises(AssertionError):
        gg.terms(gg.SWA_CELLS * gg.SWA_CELLS)


def ladder(layers, tail=False):
    """Layers of two results, one of which lives on in the next layer, and where each of them starts.

    With a tail each layer leaves its last operation to the next one.
    """
    x = gg.new("f32", 256)
    x.flags = gg.INPUT
    g = gg.Graph()
    starts = []
    cur = x
    for _layer in range(layers):
        starts.append(len(g.nodes))
        wide = gg.op("norm", (1024, 1, 1, 1), cur)
        cur = gg.op("concat", (256, 1, 1, 1), wide, cur)
        g.expand(cur)
        if tail:
            cur = gg.op("norm", (512, 1, 1, 1), cur)
    starts.append(len(g.nodes))
    g.expand(gg.op("norm", (4096, 1, 1, 1), cur))
    return g, starts


def layers_of(kinds, **more):
    """One layer for each letter, all of them in one place."""
    return [graphs.LayerKind(kind, kind, 0, **more) for kind in kinds]


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(("plain", "built"), [(True, 4), (False, 5)])
@pytest.mark.parametrize("times", [7, 8, 9, 14, 40])
def test_repeated_layers_need_not_be_built(times, plain, built, tail):
    fold = graphs.fold(layers_of("a" * times), plain)
    assert len(fold.kept) == built
    scheduler = gg.Scheduler(0, lambda backend, t: True, True, False)
    g, starts = ladder(len(fold.kept), tail)
    folded = gg.lay_out(g, scheduler, [False], gg.Judgements((1,)), starts, fold)[0].peak(32, (1,))
    assert folded == on_cpu(ladder(times, tail)[0]).sizes[0]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "aab", "abc", "aaaaab"]), min_size=1, max_size=20).map("".join), st.booleans()
)
def test_a_layer_stands_for_those_with_its_kind_and_neighbours_only(kinds, plain):
    fold = graphs.fold(layers_of(kinds), plain)
    if fold is None:
        return

    def around(layers, at):
        """A plain layer depends on the one in front of it, others on two and on the one behind."""
        padded = "--" + layers + "-"
        return padded[at + 1 : at + 3] if plain else padded[at : at + 4]

    built = "".join(kinds[il] for il in fold.kept)
    assert len(fold.order) == len(kinds)
    for il, position in enumerate(fold.order):
        assert around(built, position) == around(kinds, il)
        if fold.kept[position] != il:
            assert built[:position].count(kinds[il]) > 0
            assert built[position + 1 :].count(kinds[il]) > 0


def test_layers_that_share_the_same_tensors_are_first_and_last_together():
    alike = [graphs.LayerKind(kind, "mask", 0) for kind in "abababababab"]
    apart = layers_of("abababababab")
    assert len(graphs.fold(alike, True).kept) < len(graphs.fold(apart, True).kept)


def test_what_a_late_layer_is_the_first_to_use_reaches_one_layer_further():
    assert graphs.fold(layers_of("aaaaaaaa", late=True), True).kept[:3] == (0, 1, 2)
    assert graphs.fold(layers_of("aaaaaaaa"), True).kept[:3] != (0, 1, 2)


def test_a_layer_behind_a_silent_one_depends_on_two():
    silent = {kind: graphs.LayerKind(kind, "x", 0, silent=kind == "s") for kind in "abs"}
    fold = graphs.fold([silent[kind] for kind in "asasasasbsbsbsbsasasasas"], True)
    for il, position in enumerate(fold.order):
        real, stands = "--asasasasbsbsbsbsasasasas"[il : il + 3], fold.kept[position]
        assert "--asasasasbsbsbsbsasasasas"[stands : stands + 3] == real


def test_the_place_of_the_next_layer_counts():
    kinds = [graphs.LayerKind("a", "a", place) for place in "0000000011111111"]
    fold = graphs.fold(kinds, True)
    assert fold.kept[fold.order[7]] == 7  # the last one in front of the other device


def test_a_layer_without_operations_is_not_folded_unless_that_is_known():
    """Were its operations those of the next layer, another one would stand for both."""
    g, starts = ladder(4)
    starts[2] = starts[1]
    fold = graphs.fold(layers_of("a" * 9), True)
    scheduler = gg.Scheduler(0, lambda backend, t: True, True, False)
    with pytest.raises(gg.NotPeriodicError):
        gg.lay_out(g, scheduler, [False], gg.Judgements((1,)), starts, fold)


def test_a_plain_layer_that_changes_the_device_is_not_folded():
    """An operation that the device lacks: its inputs are copied while another layer runs."""
    fold = graphs.fold(layers_of("a" * 9), True)
    for lacks in ("concat", ""):
        g, starts = ladder(4)
        for node in g.nodes:
            if node.op == "norm":
                node.src.append(gg.new("f32", 1))
                node.src[-1].weight, node.src[-1].buf = True, 0
        scheduler = gg.Scheduler(1, lambda backend, t, lacks=lacks: t.op != lacks, True, False)
        with pytest.raises(gg.NotPeriodicError) if lacks else contextlib.nullcontext():
            gg.lay_out(g, scheduler, [True, False], gg.Judgements((1,)), starts, fold)


def test_layers_that_are_not_alike_are_not_folded():
    x = gg.new("f32", 256)
    x.flags = gg.INPUT
    g = gg.Graph()
    starts = []
    cur = x
    for layer in range(4):
        starts.append(len(g.nodes))
        cur = gg.op("norm", (256 << layer, 1, 1, 1), cur)
        g.expand(cur)
    starts.append(len(g.nodes))
    scheduler = gg.Scheduler(0, lambda backend, t: True, True, False)
    fold = gg.Fold((0, 1, 2, 8), (0, 1, 2, 2, 2, 3), (), (True,) * 4, True)
    with pytest.raises(gg.NotPeriodicError):
        gg.lay_out(g, scheduler, [False], gg.Judgements((1,)), starts, fold)


def test_an_empty_block_within_what_is_freed_stays_behind_it():
    """ggml_dyn_tallocr_insert_block sorts by address: of two equal blocks the last one in memory is the best."""
    starts, lengths = [50, 202], [0, gg._ENDLESS]
    gg._run([~0], [100], [0], starts, lengths, 202)
    assert starts == [0, 50, 202]
    assert lengths == [100, 0, gg._ENDLESS]


def test_the_block_without_an_end_may_come_in_front_of_others():
    """ggml_dyn_tallocr_alloc takes the last block only where no other is large enough, whichever block is last."""
    starts, lengths, addr = [50, 300], [gg._ENDLESS, 400], [0, 0]
    assert gg._run([0], [100, 10], addr, starts, lengths, 0) == 150
    assert (starts, lengths) == ([150, 300], [gg._ENDLESS, 400])
    gg._run([~1], [0, 10], [0, 700], starts, lengths, 0)
    assert (starts, lengths) == ([150, 300], [gg._ENDLESS, 410])


def test_a_block_that_grew_over_an_empty_one_is_still_merged_with():
    """ggml_dyn_tallocr_free_bytes looks at every block; one that grew downwards is not sorted again."""
    starts, lengths = [50, 10, 300], [0, 90, gg._ENDLESS]
    gg._run([~0], [10], [0], starts, lengths, 300)
    assert (starts, lengths) == ([50, 0, 300], [0, 100, gg._ENDLESS])
