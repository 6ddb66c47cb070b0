# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of ggml's graphs, scheduler and graph allocator: shapes and addresses, no data.

It answers one question: how large is the compute buffer of each backend. The functions follow ggml.c
(tensors and the order of a graph), ggml-backend.cpp (ggml_backend_sched_split_graph: which backend runs
what, and what is copied between them) and ggml-alloc.c (best-fit allocation with reuse in place), all of
TheTom/llama-cpp-turboquant at 69d8e4be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ansible_collections.llamafleet.turboquant.plugins.module_utils._cache_types import (
    PLAIN_CACHE_TYPES,
    TURBO_CACHE_TYPES,
    WEIGHT_TYPES,
    TypeSize,
)

TYPES: dict[str, TypeSize] = {
    **{name.lower(): size for name, size in WEIGHT_TYPES.items()},
    **PLAIN_CACHE_TYPES,
    **TURBO_CACHE_TYPES,
}
INPUT, OUTPUT = 1, 2
MAX_SPLIT_INPUTS = 30  # GGML_SCHED_MAX_SPLIT_INPUTS
MAX_COPIES = 4  # GGML_SCHED_MAX_COPIES
CPU = -1  # the buffer of a tensor that lies in RAM; devices count from 0
NOWHERE = -2  # not allocated yet
UNBOUNDED = 1 << 40

VIEW_OPS = frozenset(["view", "reshape", "permute", "transpose"])
# ggml_op_can_inplace (ggml-alloc.c:22)
INPLACE_OPS = frozenset(
    [
        "fill",
        "scale",
        "add",
        "add_id",
        "sub",
        "mul",
        "div",
        "sqr",
        "sqrt",
        "log",
        "unary",
        "rope",
        "rms_norm",
        "soft_max",
    ]
)


class SplitInputsError(Exception):
    """GGML_ASSERT(n_inputs < GGML_SCHED_MAX_SPLIT_INPUTS): the program aborts."""


class T:
    """A tensor: shape, strides, where it comes from and where it lies."""

    __slots__ = (
        "addr",
        "addr_slope",
        "allocated",
        "backend",
        "buf",
        "buffer_id",
        "children",
        "flags",
        "name",
        "nb",
        "nbytes",
        "ne",
        "op",
        "slope",
        "src",
        "ty",
        "views",
        "visited",
        "vsrc",
        "weight",
    )

    # set while the graph is laid out
    addr: int
    addr_slope: int
    allocated: bool
    buffer_id: int
    children: int
    views: int

    def __init__(self, op: str, ty: str, ne: tuple[int, int, int, int], src: Sequence[T] = ()) -> None:
        self.op = op
        self.ty = ty
        self.ne = ne
        size = TYPES[ty]
        nb0 = size.size
        nb1 = nb0 * (ne[0] // size.block)
        nb2 = nb1 * ne[1]
        nb3 = nb2 * ne[2]
        self.nb = (nb0, nb1, nb2, nb3)
        self.nbytes = nb3 * ne[3]
        self.src = list(src)
        self.vsrc: T | None = None
        self.flags = 0
        self.buf = NOWHERE
        self.weight = False
        self.name = ""
        self.backend = NOWHERE
        self.visited = False
        self.slope = 0  # how much nbytes grows with every 256 cells of the cache


def _view_bytes(ty: str, ne: tuple[int, ...], nb: tuple[int, ...]) -> int:
    """ggml_nbytes for any strides."""
    if min(ne) <= 0:
        return 0
    size = TYPES[ty]
    total = size.size + (ne[0] - 1) * nb[0] if size.block == 1 else ne[0] * nb[0] // size.block
    return total + (ne[1] - 1) * nb[1] + (ne[2] - 1) * nb[2] + (ne[3] - 1) * nb[3]


def is_contiguous(t: T, free_dims: int = 0) -> bool:
    """ggml_is_contiguous_n: the first free_dims dimensions may have any stride."""
    size = TYPES[t.ty]
    expected = size.size
    if t.ne[0] != size.block and t.nb[0] != expected:
        return False
    expected *= t.ne[0] // size.block
    for i in (1, 2, 3):
        if i > free_dims:
            if t.ne[i] != 1 and t.nb[i] != expected:
                return False
            expected *= t.ne[i]
        else:
            expected = t.ne[i] * t.nb[i]
    return True


def new(ty: str, n0: int, n1: int = 1, n2: int = 1, n3: int = 1) -> T:
    return T("none", ty, (n0, n1, n2, n3))


def op(name: str, ne: tuple[int, int, int, int], *src: T | None, ty: str = "f32") -> T:
    """A node with a result of its own."""
    return T(name, ty, ne, [s for s in src if s is not None])


def like(name: str, a: T, *more: T | None) -> T:
    """A node whose result has the shape of its first source (ggml_dup_tensor)."""
    return T(name, a.ty, a.ne, [a, *[s for s in more if s is not None]])


def view(a: T, ne: tuple[int, int, int, int], nb: tuple[int, int, int], name: str = "view") -> T:
    """ggml_view_4d with the strides of dimensions 1 to 3."""
    t = T(name, a.ty, ne, [a])
    t.vsrc = a.vsrc or a
    t.nb = (t.nb[0], *nb)
    t.nbytes = _view_bytes(a.ty, ne, t.nb)
    return t


def view_1d(a: T, n: int) -> T:
    size = TYPES[a.ty]
    nb1 = n // size.block * size.size
    return view(a, (n, 1, 1, 1), (nb1, nb1, nb1))


def view_2d(a: T, n0: int, n1: int, nb1: int) -> T:
    return view(a, (n0, n1, 1, 1), (nb1, nb1 * n1, nb1 * n1))


def view_3d(a: T, n0: int, n1: int, n2: int, nb1: int, nb2: int) -> T:
    return view(a, (n0, n1, n2, 1), (nb1, nb2, nb2 * n2))


def view_tensor(a: T, name: str, src: Sequence[T]) -> T:
    """A node that writes into another tensor (ggml_view_tensor with an operation)."""
    t = T(name, a.ty, a.ne, src)
    t.vsrc = a.vsrc or a
    t.nb = a.nb
    t.nbytes = a.nbytes
    return t


def reshape(a: T, n0: int, n1: int = 1, n2: int = 1, n3: int = 1) -> T:
    t = T("reshape", a.ty, (n0, n1, n2, n3), [a])
    t.vsrc = a.vsrc or a
    return t


def permute(a: T, *axes: int) -> T:
    ne, nb = [0] * 4, [0] * 4
    for i, axis in enumerate(axes):
        ne[axis], nb[axis] = a.ne[i], a.nb[i]
    t = T("permute", a.ty, a.ne, [a])
    t.vsrc = a.vsrc or a
    t.ne = (ne[0], ne[1], ne[2], ne[3])
    t.nb = (nb[0], nb[1], nb[2], nb[3])
    t.nbytes = _view_bytes(a.ty, t.ne, t.nb)
    return t


def transpose(a: T) -> T:
    t = permute(a, 1, 0, 2, 3)
    t.op = "transpose"
    return t


def cont(a: T) -> T:
    return like("cont", a)


def cont_2d(a: T, n0: int, n1: int) -> T:
    return op("cont", (n0, n1, 1, 1), a, ty=a.ty)


def mul_mat(a: T, b: T) -> T:
    return T("mul_mat", "f32", (a.ne[1], b.ne[1], b.ne[2], b.ne[3]), [a, b])


def mul_mat_id(experts: T, b: T, ids: T) -> T:
    return T("mul_mat_id", "f32", (experts.ne[1], ids.ne[0], b.ne[2], 1), [experts, b, ids])


def get_rows(a: T, rows: T) -> T:
    ty = "i32" if a.ty == "i32" else "f32"
    return T("get_rows", ty, (a.ne[0], rows.ne[0], rows.ne[1], rows.ne[2]), [a, rows])


def set_rows(into: T, rows: T, ids: T) -> T:
    return view_tensor(into, "set_rows", [rows, ids, into])


def cpy(a: T, into: T) -> T:
    return view_tensor(into, "cpy", [a, into])


def cast(a: T, ty: str) -> T:
    t = T("cpy", ty, a.ne, [a])
    t.src.append(t)  # ggml_cast names itself as its second source
    return t


def clamp(a: T) -> T:
    return view_tensor(a, "clamp", [a])


def glu(a: T, b: T | None = None) -> T:
    if b is None:
        return T("glu", a.ty, (a.ne[0] // 2, a.ne[1], a.ne[2], a.ne[3]), [a])
    return T("glu", a.ty, a.ne, [a, b])


def concat(a: T, b: T, dim: int) -> T:
    ne = list(a.ne)
    ne[dim] += b.ne[dim]
    return T("concat", a.ty, (ne[0], ne[1], ne[2], ne[3]), [a, b])


def pad0(a: T, extra: int) -> T:
    return T("pad", a.ty, (a.ne[0] + extra, a.ne[1], a.ne[2], a.ne[3]), [a])


def sum_rows(a: T) -> T:
    return T("sum_rows", a.ty, (1, a.ne[1], a.ne[2], a.ne[3]), [a])


def argsort_top_k(a: T, k: int) -> T:
    order = T("argsort", "i32", a.ne, [a])
    return view(order, (k, a.ne[1], a.ne[2], a.ne[3]), order.nb[1:])


class Graph:
    """Nodes and leafs in ggml's order (ggml_build_forward_expand, left to right)."""

    def __init__(self) -> None:
        self.nodes: list[T] = []
        self.leafs: list[T] = []

    def expand(self, t: T) -> None:
        if t.visited:
            return
        nodes, leafs = self.nodes, self.leafs
        t.visited = True
        stack: list[tuple[T, int]] = [(t, 0)]
        while stack:
            node, i = stack.pop()
            src = node.src
            while i < len(src):
                s = src[i]
                i += 1
                if not s.visited:
                    s.visited = True
                    stack.append((node, i))
                    stack.append((s, 0))
                    break
            else:
                if node.op == "none":
                    leafs.append(node)
                else:
                    nodes.append(node)


SupportsOp = Callable[[int, T], bool]


class Scheduler:
    """ggml_backend_sched: the last backend is the CPU, the ones before it are the devices."""

    def __init__(self, n_devices: int, supports: SupportsOp, op_offload: bool, pipeline: bool) -> None:
        self.n = n_devices + 1
        self.cpu = n_devices
        self.supports_device = supports
        self.op_offload = op_offload
        self.n_copies = MAX_COPIES if pipeline else 1
        self.n_splits = 1

    def supports(self, backend: int, t: T) -> bool:
        return backend == self.cpu or self.supports_device(backend, t)

    def _buffer_ok(self, backend: int, buf: int) -> bool:
        """ggml_backend_supports_buft: the CPU reads host memory, a device only its own."""
        return buf == CPU if backend == self.cpu else buf == backend

    def _from_buffer(self, t: T, operation: T) -> int:
        buf = t.vsrc.buf if t.vsrc is not None else t.buf
        if buf == NOWHERE:
            return NOWHERE
        backend = self.cpu if buf == CPU else buf
        return backend if self.supports(backend, operation) else NOWHERE

    def _from_current(self, t: T) -> int:
        """ggml_backend_sched_backend_id_from_cur."""
        backend = self._from_buffer(t, t)
        if backend != NOWHERE:
            return backend
        if (t.vsrc.buf if t.vsrc is not None else t.buf) != NOWHERE:
            raise SplitInputsError(f"a pre-allocated tensor cannot run {t.op}")
        if t.flags & INPUT:
            return self.cpu
        if t.op != "rope":
            for s in t.src:
                if s.weight:
                    backend = self._from_buffer(s, t)
                    if self.op_offload and backend == self.cpu:
                        for b in range(self.cpu):
                            if _offload_batch(t) >= 32 and self.supports(b, t):
                                return b
                    return backend
        return NOWHERE

    def _supported_buffer(self, t: T, backend: int) -> bool:
        """ggml_backend_sched_buffer_supported."""
        buf = t.vsrc.buf if t.vsrc is not None else t.buf
        if buf == NOWHERE:
            owner = t.backend
            if owner == NOWHERE and t.vsrc is not None:
                owner = t.vsrc.backend
            if owner == NOWHERE:
                return False
            return owner == backend
        return self._buffer_ok(backend, buf)

    def split(self, g: Graph) -> tuple[list[T], list[int], list[T], list[int]]:
        """Nodes and leafs of the graph copy, with the backend of each (ggml_backend_sched_split_graph)."""
        cpu = self.cpu
        nodes = g.nodes
        for leaf in g.leafs:
            if leaf.backend == NOWHERE:
                leaf.backend = self._from_current(leaf)
        for t in nodes:
            if t.backend == NOWHERE:
                t.backend = self._from_current(t)
        if cpu == 0:
            # one backend: everything runs on it and nothing is copied
            self.n_splits = 1
            return nodes, [0] * len(nodes), g.leafs, [0] * len(g.leafs)
        work = [t for t in nodes if t.op not in VIEW_OPS]
        self._spread(work, gpu_only=True)
        self._spread(work[::-1], gpu_only=True)
        self._spread(work, gpu_only=False)
        self._spread(work[::-1], gpu_only=False)
        for t in work:
            if t.backend == NOWHERE:
                best = -1
                for b in range(self.n):
                    if self.supports(b, t):
                        count = sum(1 for s in t.src if self._supported_buffer(s, b))
                        if count > best:
                            best, t.backend = count, b
        for t in nodes:
            if t.vsrc is not None and t.backend == NOWHERE:
                t.backend = t.vsrc.backend
            for s in t.src:
                if s.backend == NOWHERE:
                    s.backend = s.vsrc.backend if s.vsrc is not None else t.backend
            b = 0
            while t.backend == NOWHERE:
                if self.supports(b, t):
                    t.backend = b
                b += 1
        return self._copies(g)

    def _spread(self, work: Sequence[T], gpu_only: bool) -> None:
        current = NOWHERE
        for t in work:
            if t.backend != NOWHERE:
                current = NOWHERE if gpu_only and t.backend == self.cpu else t.backend
            elif current != NOWHERE and self.supports(current, t):
                t.backend = current

    def _copies(self, g: Graph) -> tuple[list[T], list[int], list[T], list[int]]:
        copies: dict[tuple[int, int], list[T]] = {}
        graph_inputs: list[T] = []
        splits: list[tuple[int, int, list[T]]] = []
        nodes = g.nodes
        start = 0
        while start < len(nodes) and nodes[start].op in VIEW_OPS:
            start += 1
        current = nodes[start].backend
        inputs: list[T] = []
        split_start = 0
        n_copies = self.n_copies
        for i in range(start, len(nodes)):
            t = nodes[i]
            if t.op in VIEW_OPS:
                continue
            need_new = False
            if t.backend == current and inputs:
                for s in t.src:
                    if s.weight and s.backend != current and not self._supported_buffer(s, current):
                        need_new = True
                        break
                    if (
                        len(inputs) == MAX_SPLIT_INPUTS
                        and s.backend != current
                        and (id(s), current) not in copies
                        and not self._supported_buffer(s, current)
                    ):
                        need_new = True
                        break
            if t.backend != current or need_new:
                splits.append((current, split_start, inputs))
                current, split_start, inputs = t.backend, i, []
            for j, s in enumerate(t.src):
                if s.flags & INPUT and n_copies > 1 and (id(s), s.backend) not in copies:
                    made = [s, *[_duplicate(s) for copy in range(n_copies - 1)]]
                    for c in made:
                        c.flags |= INPUT | OUTPUT
                    copies[id(s), s.backend] = made
                    graph_inputs.append(s)
                    if len(graph_inputs) > MAX_SPLIT_INPUTS:
                        raise SplitInputsError("too many graph inputs")
                if s.backend != current and not self._supported_buffer(s, current):
                    if (id(s), current) not in copies:
                        made = []
                        for _copy in range(n_copies):
                            c = _duplicate(s)
                            if n_copies > 1:
                                c.flags |= INPUT | OUTPUT
                            made.append(c)
                        copies[id(s), current] = made
                        inputs.append(s)
                        if len(inputs) > MAX_SPLIT_INPUTS:
                            raise SplitInputsError("a split of the graph needs more than 30 inputs")
                    t.src[j] = copies[id(s), current][0]
        splits.append((current, split_start, inputs))
        self.n_splits = len(splits)
        out: list[T] = []
        ids: list[int] = []
        for k, (backend, first, split_inputs) in enumerate(splits):
            last = splits[k + 1][1] if k + 1 < len(splits) else len(nodes)
            for s in split_inputs:
                # an external dependency: keeps the source until it is copied
                keep = T("none", s.ty, s.ne, [s])
                keep.vsrc = s.vsrc or s
                keep.nbytes = s.nbytes
                keep.slope = s.slope
                out.append(keep)
                ids.append(s.backend)
                out.append(copies[id(s), backend][0])
                ids.append(backend)
            for t in nodes[first:last]:
                out.append(t)
                ids.append(t.backend)
        leafs: list[T] = []
        leaf_ids: list[int] = []
        if n_copies > 1:
            for s in graph_inputs:
                leafs += copies[id(s), s.backend]
                leaf_ids += [s.backend] * n_copies
            for backend, _first, split_inputs in splits:
                for s in split_inputs:
                    leafs += copies[id(s), backend]
                    leaf_ids += [backend] * n_copies
        for leaf in g.leafs:
            leafs.append(leaf)
            leaf_ids.append(leaf.backend)
        return out, ids, leafs, leaf_ids


def _duplicate(s: T) -> T:
    """ggml_dup_tensor_layout: the copy has the shape's own size, with the strides of the source."""
    c = T("none", s.ty, s.ne)
    c.nb = s.nb
    c.nbytes = _view_bytes(s.ty, s.ne, s.nb)
    c.slope = s.slope
    return c


def _offload_batch(t: T) -> int:
    """get_op_batch_size (ggml-cuda.cu): how many rows an operation works on."""
    if t.op == "get_rows":
        return 0
    if t.op == "mul_mat":
        return t.ne[1]
    if t.op in ("mul_mat_id", "rope"):
        return t.ne[2]
    return t.ne[1] * t.ne[2] * t.ne[3]


class Range:
    """For how many more or fewer steps of the cache's size every decision of the allocator stays the same.

    All sizes and addresses are linear in the number of cells. Each comparison that the allocator makes holds
    up to the point where its two sides cross; the range is what they have in common.
    """

    __slots__ = ("high", "low")

    def __init__(self) -> None:
        self.low = -UNBOUNDED
        self.high = UNBOUNDED

    def keep(self, distance: int, slope: int) -> None:
        """distance + slope * steps stays 0 or more."""
        if slope > 0:
            low = -(distance // slope)
            if low > self.low:
                self.low = low
        elif slope < 0:
            high = distance // -slope
            if high < self.high:
                self.high = high

    def only_here(self) -> None:
        self.low = self.high = 0


class _Buffer:
    """ggml_dyn_tallocr with one chunk: free blocks sorted by address, each [addr, size, their slopes]."""

    __slots__ = ("align", "blocks", "max_size", "max_slope", "padded", "range")

    def __init__(self, align: int, padded: bool, valid: Range) -> None:
        self.align = align
        self.padded = padded
        self.blocks: list[list[int]] = [[0, 1 << 62, 0, 0]]
        self.max_size = 0
        self.max_slope = 0
        self.range = valid

    def size_of(self, t: T) -> int:
        """get_alloc_size, aligned: CUDA pads the last row of a quantized tensor."""
        size = t.nbytes
        if self.padded:
            kind = TYPES[t.ty]
            if kind.block > 1 and t.ne[0] % 512:
                size += kind.row(512 - t.ne[0] % 512)
        if t.slope and t.slope % self.align:
            self.range.only_here()
        return -(-size // self.align) * self.align

    def alloc(self, size: int, slope: int) -> tuple[int, int]:
        """The smallest free block that is large enough, the last of equals."""
        blocks = self.blocks
        keep = self.range.keep
        best = -1
        best_size = 1 << 63
        best_slope = 0
        for i in range(len(blocks) - 1):
            have, have_slope = blocks[i][1], blocks[i][3]
            if size <= have:
                if slope != have_slope:
                    keep(have - size, have_slope - slope)
                if have <= best_size:
                    if best >= 0 and best_slope != have_slope:
                        keep(best_size - have, best_slope - have_slope)
                    best, best_size, best_slope = i, have, have_slope
                elif best_slope != have_slope:
                    keep(have - best_size - 1, have_slope - best_slope)
            elif slope != have_slope:
                keep(size - have - 1, slope - have_slope)
        block = blocks[best]  # -1 is the last one, which has no end
        addr, addr_slope = block[0], block[2]
        block[0] += size
        block[1] -= size
        block[2] += slope
        if best >= 0:
            block[3] -= slope
            if block[1] == 0:
                if block[3]:
                    self.range.only_here()
                del blocks[best]
            elif block[3]:
                keep(block[1] - 1, block[3])
        end, end_slope = addr + size, addr_slope + slope
        if end > self.max_size:
            if end_slope != self.max_slope:
                keep(end - self.max_size, end_slope - self.max_slope)
            self.max_size, self.max_slope = end, end_slope
        elif end_slope != self.max_slope:
            keep(self.max_size - end, self.max_slope - end_slope)
        return addr, addr_slope

    def free(self, addr: int, size: int, addr_slope: int, slope: int) -> None:
        blocks = self.blocks
        end, end_slope = addr + size, addr_slope + slope
        last = len(blocks) - 1
        for i, block in enumerate(blocks):
            block_end, block_slope = block[0] + block[1], block[2] + block[3]
            if block_end == addr:
                if block_slope != addr_slope:
                    self.range.only_here()
                block[1] += size
                block[3] += slope
                if i < last:
                    after = blocks[i + 1]
                    self._order(after[0] - end, after[2] - end_slope)
                    if end == after[0]:
                        block[1] += after[1]
                        block[3] += after[3]
                        del blocks[i + 1]
                return
            if end == block[0]:
                if block[2] != end_slope:
                    self.range.only_here()
                block[0], block[2] = addr, addr_slope
                block[1] += size
                block[3] += slope
                if i > 0:
                    before = blocks[i - 1]
                    before_end, before_slope = before[0] + before[1], before[2] + before[3]
                    self._order(addr - before_end, addr_slope - before_slope)
                    if before_end == addr:
                        before[1] += block[1]
                        before[3] += block[3]
                        del blocks[i]
                return
            if block[0] >= end:
                self._order(block[0] - end, block[2] - end_slope)
                break
            self._order(addr - block_end, addr_slope - block_slope)
        at = 0
        while at < len(blocks) and blocks[at][0] < addr:
            at += 1
        blocks.insert(at, [addr, size, addr_slope, slope])

    def _order(self, gap: int, slope: int) -> None:
        """Two addresses that touch keep touching, and a gap stays a gap."""
        if slope:
            if gap == 0:
                self.range.only_here()
            else:
                self.range.keep(gap - 1, slope)


def reserve(
    nodes: Sequence[T], node_ids: Sequence[int], leafs: Sequence[T], leaf_ids: Sequence[int], buffers: Sequence[_Buffer]
) -> None:
    """ggml_gallocr_alloc_graph_impl: afterwards each buffer's max_size is what the backend reserves."""
    seen: set[int] = set()
    for t in leafs:
        _prepare(t, seen)
    for t in nodes:
        _prepare(t, seen)
        for s in t.src:
            _prepare(s, seen)
            if s.vsrc is not None:
                _prepare(s.vsrc, seen)
        if t.vsrc is not None:
            _prepare(t.vsrc, seen)
    for t, backend in zip(leafs, leaf_ids):
        _allocate(t, backend, buffers)
    for t, backend in zip(nodes, node_ids):
        if t.vsrc is not None and t.op != "none":
            t.vsrc.views += 1
        if t.flags & INPUT:
            _allocate(t, backend, buffers)
        for s in t.src:
            s.children += 1
            if s.flags & INPUT:
                _allocate(s, backend, buffers)
    for t, backend in zip(nodes, node_ids):
        for s in t.src:
            _allocate(s, backend, buffers)
        _allocate(t, backend, buffers)
        for s in t.src:
            s.children -= 1
            if s.children == 0 and s.views == 0:
                if s.vsrc is not None:
                    root = s.vsrc
                    root.views -= 1
                    if root.views == 0 and root.children == 0 and root.allocated:
                        _free(root, buffers)
                elif s.allocated:
                    _free(s, buffers)


def _prepare(t: T, seen: set[int]) -> None:
    if id(t) not in seen:
        seen.add(id(t))
        t.children = 0
        t.views = 0
        t.allocated = False
        t.buffer_id = 0
        t.addr = 0
        t.addr_slope = 0


def _allocate(t: T, backend: int, buffers: Sequence[_Buffer]) -> None:
    if t.allocated or t.buf != NOWHERE or t.vsrc is not None:
        return
    t.allocated = True
    if t.op in INPLACE_OPS:
        for parent in t.src:
            # a view never counts as allocated (ggml_gallocr_is_own), so parents are roots here
            if not parent.allocated or parent.flags & OUTPUT:
                continue
            if parent.ty != t.ty or parent.ne != t.ne or parent.nb != t.nb:
                continue
            if parent.children == 1 and parent.views == 0:
                t.buffer_id, t.addr, t.addr_slope = parent.buffer_id, parent.addr, parent.addr_slope
                parent.allocated = False
                _free_rest(t, parent, buffers)
                return
    buffer = buffers[backend]
    t.buffer_id = backend
    t.addr, t.addr_slope = buffer.alloc(buffer.size_of(t), t.slope)


def _free(t: T, buffers: Sequence[_Buffer]) -> None:
    if t.flags & OUTPUT:
        return
    buffer = buffers[t.buffer_id]
    buffer.free(t.addr, buffer.size_of(t), t.addr_slope, t.slope)
    t.allocated = False


def _free_rest(t: T, parent: T, buffers: Sequence[_Buffer]) -> None:
    have = buffers[parent.buffer_id].size_of(parent)
    need = buffers[parent.buffer_id].size_of(t)
    if have > need:
        buffers[parent.buffer_id].free(parent.addr + need, have - need, parent.addr_slope + t.slope, 0)


class Layout(NamedTuple):
    """Bytes of each backend's compute buffer, how they grow with 256 cells, and for which steps that holds."""

    sizes: tuple[int, ...]
    slopes: tuple[int, ...]
    low: int
    high: int
    splits: int
    nodes: int


def grow(g: Graph, larger: Graph) -> None:
    """Tell every tensor how much larger it is in the same graph with 256 more cells."""
    for mine, other in ((g.nodes, larger.nodes), (g.leafs, larger.leafs)):
        for a, b in zip(mine, other):
            a.slope = b.nbytes - a.nbytes


def check_inputs(g: Graph, scheduler: Scheduler) -> None:
    """Split the graph only; an error where a split has too many inputs."""
    scheduler.split(g)


def lay_out(g: Graph, scheduler: Scheduler, aligns: Sequence[int], padded: Sequence[bool]) -> Layout:
    """Split the graph and allocate it."""
    n_nodes = len(g.nodes)
    nodes, node_ids, leafs, leaf_ids = scheduler.split(g)
    valid = Range()
    buffers = [_Buffer(align, pads, valid) for align, pads in zip(aligns, padded)]
    reserve(nodes, node_ids, leafs, leaf_ids, buffers)
    return Layout(
        tuple(b.max_size for b in buffers),
        tuple(b.max_slope for b in buffers),
        valid.low,
        valid.high,
        scheduler.n_splits,
        n_nodes,
    )
