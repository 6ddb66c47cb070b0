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

import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class CannotRunError(SplitInputsError):
    """A tensor lies in a buffer whose device cannot run the operation on it: the program aborts."""


_NO_SOURCES: list[T] = []  # of leafs; never written to


class T:
    """A tensor: shape, strides, where it comes from and where it lies."""

    __slots__ = (
        "allocated",
        "backend",
        "buf",
        "buffer_id",
        "children",
        "flags",
        "layer",
        "nb",
        "nbytes",
        "ne",
        "op",
        "slot",
        "src",
        "ty",
        "views",
        "visited",
        "vsrc",
        "weight",
    )

    layer: int  # of flash attention only
    # while the buffers are recorded, once for a graph
    buffer_id: int
    slot: int

    def __init__(
        self,
        op: str,
        ty: str,
        ne: tuple[int, int, int, int],
        src: list[T] | None = None,
        nb: tuple[int, int, int, int] | None = None,
        nbytes: int = 0,
    ) -> None:
        """Without strides the tensor is contiguous."""
        self.op = op
        self.ty = ty
        self.ne = ne
        self.src = _NO_SOURCES if src is None else src
        self.vsrc: T | None = None
        self.flags = 0
        self.buf = NOWHERE
        self.weight = False
        self.backend = NOWHERE
        self.visited = False
        self.allocated = False
        self.children = 0
        self.views = 0
        if nb is not None:
            self.nb = nb
            self.nbytes = nbytes
            return
        n0, n1, n2, n3 = ne
        if ty == "f32":
            nb0 = 4
            nb1 = 4 * n0
        else:
            block, nb0 = TYPES[ty]
            if block > 1 and n0 >= TOKENS:
                _check_blocks(n0, block)
            nb1 = nb0 * (n0 // block)
        nb2 = nb1 * n1
        nb3 = nb2 * n2
        self.nb = (nb0, nb1, nb2, nb3)
        self.nbytes = nb3 * n3


def _check_blocks(row: int, block: int) -> None:
    """A row of unknown length can be cut into blocks where whole blocks make up each part of it, as with cells."""
    if any(digit % block for _position, digit in terms(row)):
        raise NumbersNeededError


def _view_bytes(ty: str, ne: tuple[int, int, int, int], nb: tuple[int, int, int, int]) -> int:
    """ggml_nbytes for any strides."""
    n0, n1, n2, n3 = ne
    if n0 <= 0 or n1 <= 0 or n2 <= 0 or n3 <= 0:
        return 0
    block, size = TYPES[ty]
    if block == 1:
        total = size + (n0 - 1) * nb[0]
    else:
        if n0 >= TOKENS:
            _check_blocks(n0, block)
        total = n0 * nb[0] // block
    return total + (n1 - 1) * nb[1] + (n2 - 1) * nb[2] + (n3 - 1) * nb[3]


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
    strides = (TYPES[a.ty].size, *nb)
    t = T(name, a.ty, ne, [a], strides, _view_bytes(a.ty, ne, strides))
    t.vsrc = a.vsrc or a
    return t


def view_1d(a: T, n: int) -> T:
    size = TYPES[a.ty]
    nb1 = n // size.block * size.size
    return view(a, (n, 1, 1, 1), (nb1, nb1, nb1))


def view_2d(a: T, n0: int, n1: int, nb1: int) -> T:
    return view(a, (n0, n1, 1, 1), (nb1, nb1 * n1, nb1 * n1))


def view_3d(a: T, n0: int, n1: int, n2: int, nb1: int, nb2: int) -> T:
    return view(a, (n0, n1, n2, 1), (nb1, nb2, nb2 * n2))


def view_tensor(a: T, name: str, src: list[T]) -> T:
    """A node that writes into another tensor (ggml_view_tensor with an operation)."""
    t = T(name, a.ty, a.ne, src, a.nb, a.nbytes)
    t.vsrc = a.vsrc or a
    return t


def reshape(a: T, n0: int, n1: int = 1, n2: int = 1, n3: int = 1) -> T:
    t = T("reshape", a.ty, (n0, n1, n2, n3), [a])
    t.vsrc = a.vsrc or a
    return t


def permute(a: T, i0: int, i1: int, i2: int, i3: int) -> T:
    """ggml_permute: dimension 0 of the source becomes dimension i0, and so on."""
    ne, nb = [0] * 4, [0] * 4
    ne[i0], ne[i1], ne[i2], ne[i3] = a.ne
    nb[i0], nb[i1], nb[i2], nb[i3] = a.nb
    shape, strides = (ne[0], ne[1], ne[2], ne[3]), (nb[0], nb[1], nb[2], nb[3])
    t = T("permute", a.ty, shape, [a], strides, _view_bytes(a.ty, shape, strides))
    t.vsrc = a.vsrc or a
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
        stack = [(t, iter(t.src))]
        while stack:
            node, sources = stack[-1]
            for s in sources:
                if not s.visited:
                    s.visited = True
                    if s.src:
                        stack.append((s, iter(s.src)))
                        break
                    (leafs if s.op == "none" else nodes).append(s)
            else:
                stack.pop()
                (leafs if node.op == "none" else nodes).append(node)


SupportsOp = Callable[[int, T], bool]


class Scheduler:
    """ggml_backend_sched: the last backend is the CPU, the ones before it are the devices."""

    def __init__(self, n_devices: int, supports: SupportsOp, op_offload: bool, pipeline: bool) -> None:
        self.n = n_devices + 1
        self.cpu = n_devices
        self.supports_device = supports
        self.op_offload = op_offload
        self.n_copies = MAX_COPIES if pipeline else 1
        # of each split the first node and the nodes that something is copied for
        self.copied: list[tuple[int, list[int]]] = []

    def supports(self, backend: int, t: T) -> bool:
        return backend == self.cpu or self.supports_device(backend, t)

    def _buffer_ok(self, backend: int, buf: int) -> bool:
        """ggml_backend_supports_buft: the CPU reads host memory, a device only its own."""
        return buf == CPU if backend == self.cpu else buf == backend

    def _of_buffer(self, buf: int, operation: T) -> int:
        """ggml_backend_sched_backend_from_buffer: the backend of a buffer, if it can run the operation."""
        if buf == CPU:
            return self.cpu
        return buf if self.supports_device(buf, operation) else NOWHERE

    def _from_current(self, t: T) -> int:
        """ggml_backend_sched_backend_id_from_cur."""
        buf = t.buf if t.vsrc is None else t.vsrc.buf
        if buf != NOWHERE:
            backend = self._of_buffer(buf, t)
            if backend == NOWHERE:
                raise CannotRunError(f"a pre-allocated tensor cannot run {t.op}")
            return backend
        if t.flags & INPUT:
            return self.cpu
        if t.op != "rope":
            for s in t.src:
                if s.weight:
                    backend = self._of_buffer(s.buf, t)
                    if self.op_offload and backend == self.cpu:
                        for b in range(self.cpu):
                            if _offload_batch(t) >= 32 and self.supports_device(b, t):
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
        if cpu == 0:
            # one backend: everything runs on it and nothing is copied
            return nodes, [0] * len(nodes), g.leafs, [0] * len(g.leafs)
        for leaf in g.leafs:
            if leaf.backend == NOWHERE:
                leaf.backend = self._from_current(leaf)
        for t in nodes:
            if t.backend == NOWHERE:
                t.backend = self._from_current(t)
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
        uses: list[int] = []
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
            if t.backend == current and n_copies == 1:
                for s in t.src:
                    if s.backend != current:
                        break
                else:
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
                self.copied.append((split_start, uses))
                current, split_start, inputs, uses = t.backend, i, [], []
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
                        uses.append(i)
                        if len(inputs) > MAX_SPLIT_INPUTS:
                            raise SplitInputsError("a split of the graph needs more than 30 inputs")
                    t.src[j] = copies[id(s), current][0]
        splits.append((current, split_start, inputs))
        self.copied.append((split_start, uses))
        out: list[T] = []
        ids: list[int] = []
        for k, (backend, first, split_inputs) in enumerate(splits):
            last = splits[k + 1][1] if k + 1 < len(splits) else len(nodes)
            for s in split_inputs:
                # an external dependency: keeps the source until it is copied
                keep = T("none", s.ty, s.ne, [s], s.nb, s.nbytes)
                keep.vsrc = s.vsrc or s
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
    return T("none", s.ty, s.ne, _NO_SOURCES, s.nb, _view_bytes(s.ty, s.ne, s.nb))


def _offload_batch(t: T) -> int:
    """get_op_batch_size (ggml-cuda.cu): how many rows an operation works on."""
    if t.op == "get_rows":
        return 0
    if t.op == "mul_mat":
        return t.ne[1]
    if t.op in ("mul_mat_id", "rope"):
        return t.ne[2]
    return t.ne[1] * t.ne[2] * t.ne[3]


# --- sizes with unknowns --------------------------------------------------------------------------------------
#
# Most graphs differ only in how many tokens a micro-batch has and how many cells the caches have. Both are put in as
# powers of 2**64, so every size is a polynomial whose coefficients are the digits of one large number: one graph then
# serves every number of tokens and cells. What the numbers decide beyond sizes is judged with those at hand
# (Judgements), and the graph serves all numbers that decide alike.

_DIGIT = 64
TOKENS = 1 << _DIGIT  # t: the tokens of the micro-batch, in units of one for each sequence
# Caches have a multiple of these cells (the padding of n_ctx and n_ctx_seq): a row of cells holds whole blocks.
CELLS_STEP = 256
BASE_CELLS = CELLS_STEP << 3 * _DIGIT  # b: the cells of the full cache, in steps
SWA_CELLS = CELLS_STEP << 5 * _DIGIT  # s: the cells of the sliding-window cache, in steps
_MONOMIALS = 7  # 1, t, t*t, b, b*t, s, s*t: digits 0 to 6

Terms = tuple[tuple[int, int], ...]


def terms(value: int) -> Terms:
    """The digits of a size that are not 0, each with its position; a digit may be negative."""
    result = []
    for i in range(_MONOMIALS):
        digit = value & (1 << _DIGIT) - 1
        if digit >> _DIGIT - 1:
            digit -= 1 << _DIGIT
        if digit:
            result.append((i, digit))
        value = value - digit >> _DIGIT
    if value:
        raise AssertionError(f"a size has more unknowns than {_MONOMIALS} digits hold")
    return tuple(result)


def monomials(tokens: int, base_cells: int, swa_cells: int) -> tuple[int, ...]:
    """What the digits stand for with these numbers of tokens and cells."""
    base_cells //= CELLS_STEP
    swa_cells //= CELLS_STEP
    return (
        1,
        tokens,
        tokens * tokens,
        base_cells,
        base_cells * tokens,
        swa_cells,
        swa_cells * tokens,
    )


def evaluate(size: Terms, known: Sequence[int]) -> int:
    """Bytes of a size."""
    total = 0
    for i, digit in size:
        total += digit * known[i]
    return total


class Judgements:
    """What the numbers behind the unknowns decided while a graph was laid out."""

    def __init__(self, known: Sequence[int]) -> None:
        self.known = known
        self._larger: dict[tuple[int, int], bool] = {}  # by size and limit
        self._rests: dict[tuple[int, int], int] = {}  # by value and divisor

    def larger(self, size: int, limit: int) -> bool:
        """Whether a size is larger than a limit of a device."""
        result = self._larger.get((size, limit))
        if result is None:
            result = self._larger[size, limit] = evaluate(terms(size), self.known) > limit
        return result

    def rest(self, value: int, divisor: int) -> int:
        """What is left over of a value in a division."""
        if value < TOKENS:
            return value % divisor
        result = self._rests[value, divisor] = evaluate(terms(value), self.known) % divisor
        return result

    def conditions(self) -> Conditions:
        """What must be so with other numbers for the same layout."""
        return Conditions(
            tuple((terms(size), limit, larger) for (size, limit), larger in self._larger.items()),
            tuple((terms(value), divisor, rest) for (value, divisor), rest in self._rests.items()),
        )


class Conditions(NamedTuple):
    """Sizes against limits and values modulo divisors, each with its outcome."""

    larger: tuple[tuple[Terms, int, bool], ...]
    rests: tuple[tuple[Terms, int, int], ...]

    def hold(self, known: Sequence[int]) -> bool:
        """Whether these numbers decide alike."""
        return all((evaluate(size, known) > limit) == larger for size, limit, larger in self.larger) and all(
            evaluate(value, known) % divisor == rest for value, divisor, rest in self.rests
        )


# --- the allocator --------------------------------------------------------------------------------------------


class NotPeriodicError(Exception):
    """Layers that look alike are not allocated alike: the graph needs all of them."""


class NumbersNeededError(Exception):
    """A size does not follow from the unknowns alone: a row of unknown length is cut into blocks."""


class _Part(NamedTuple):
    """What happens in a buffer while one layer runs: allocations (i) and releases (~i).

    Numbered are first the tensors that the part allocates, then those that it found in the buffer and releases.
    """

    events: tuple[int, ...]
    size_of: tuple[int, ...]  # of each number, an index into the program's sizes
    ends: tuple[int, ...]  # places of what it found and releases, from the youngest (0) on
    stay: tuple[int, ...]  # numbers of what it leaves in the buffer

    def move_on(self, held: list[int], own: Sequence[int]) -> None:
        """Bring a list with something for each tensor in the buffer, by age, to the end of the part."""
        last = len(held) - 1
        for place in self.ends:
            del held[last - place]
        held += [own[i] for i in self.stay]


class Program(NamedTuple):
    """All that happens in one backend's buffer, apart from the sizes."""

    sizes: tuple[Terms, ...]
    parts: tuple[_Part, ...]  # the different ones
    order: tuple[int, ...]  # in which they follow each other

    def peak(self, align: int, known: Sequence[int]) -> int:
        """Bytes that the backend reserves (ggml_dyn_tallocr with one chunk)."""
        sizes = [-(-evaluate(size, known) // align) * align for size in self.sizes]
        of_part = [[sizes[i] for i in part.size_of] for part in self.parts]
        starts, lengths = [0], [_ENDLESS]
        held: list[int] = []  # the addresses of what the buffer holds
        top = 0
        # A layer that finds the buffer as one like it did leaves it as that one did.
        seen: dict[Any, tuple[list[int], list[int], list[int]]] = {}
        for index in self.order:
            before = (index, *held, *starts, *lengths)
            after = seen.get(before)
            if after is None:
                part, size = self.parts[index], of_part[index]
                starts, lengths, held = starts[:], lengths[:], held[:]
                addr = [0] * (len(size) - len(part.ends)) + [held[-1 - place] for place in part.ends]
                top = _run(part.events, size, addr, starts, lengths, top)
                part.move_on(held, addr)
                seen[before] = starts, lengths, held
            else:
                starts, lengths, held = after
        return top


_ENDLESS = 1 << 62


def _best_but_last(lengths: Sequence[int], need: int) -> int:
    """The block to take where empty ones brought the block without an end in front of others: never the last one."""
    return min((have, -i) for i, have in enumerate(lengths[:-1]) if have >= need)[1] * -1


def _run(
    events: Sequence[int], size: Sequence[int], addr: list[int], starts: list[int], lengths: list[int], top: int
) -> int:
    """Best fit: the smallest free block that is large enough, the last of equals; the last block has no end."""
    for event in events:
        if event >= 0:
            need = size[event]
            best = -1
            best_length = _ENDLESS - 1
            for i, have in enumerate(lengths):
                if need <= have <= best_length:
                    best, best_length = i, have
            if lengths[-1] != _ENDLESS:
                best = _best_but_last(lengths, need)
                best_length = lengths[best]
            start = starts[best]
            addr[event] = start
            end = start + need
            if best_length == need:
                del starts[best], lengths[best]
            else:
                starts[best] = end
                if lengths[best] != _ENDLESS:
                    lengths[best] = best_length - need
            if end > top:
                top = end
        else:
            start = addr[~event]
            need = size[~event]
            end = start + need
            i = -1
            for block, length in zip(starts, lengths):
                i += 1
                if block + length == start:
                    lengths[i] += need
                    if i + 1 < len(starts) and starts[i + 1] == end:
                        if lengths[i + 1] == _ENDLESS:
                            lengths[i] = _ENDLESS
                        else:
                            lengths[i] += lengths[i + 1]
                        del starts[i + 1], lengths[i + 1]
                    break
                if block == end:
                    starts[i] = start
                    if lengths[i] != _ENDLESS:
                        lengths[i] += need
                    break
            else:
                # Not in front of the first block behind it: empty blocks, of tensors without rows, may lie within.
                # A block that grew over one is out of order, so the place is searched for as ggml does.
                i = 0
                while i < len(starts) and starts[i] < start:
                    i += 1
                starts.insert(i, start)
                lengths.insert(i, need)
    return top


class _Recorder:
    """ggml_gallocr_alloc_graph_impl without addresses: who is allocated when, in place of whom, and freed when."""

    def __init__(self, padded: Sequence[bool], judge: Judgements) -> None:
        self.padded = padded
        self.judge = judge
        self.events: list[list[int]] = [[] for pads in padded]
        self.sizes: list[list[int]] = [[] for pads in padded]  # of each slot

    def position(self) -> list[tuple[int, int]]:
        """Of every buffer the numbers of events and of slots so far."""
        return [(len(events), len(sizes)) for events, sizes in zip(self.events, self.sizes)]

    def allocate(self, t: T, backend: int) -> None:
        if t.allocated or t.buf != NOWHERE or t.vsrc is not None:
            return
        t.allocated = True
        if t.op in INPLACE_OPS:
            for parent in t.src:
                # a view never counts as allocated (ggml_gallocr_is_own), so parents are roots here
                if (
                    parent.allocated
                    and parent.children == 1
                    and parent.views == 0
                    and not parent.flags & OUTPUT
                    and parent.ty == t.ty
                    and parent.ne == t.ne
                    and parent.nb == t.nb
                ):
                    # equal shapes and strides have equal sizes: nothing is left over to free
                    t.buffer_id, t.slot = parent.buffer_id, parent.slot
                    parent.allocated = False
                    return
        size = t.nbytes
        if self.padded[backend]:
            # CUDA pads the last row of a quantized tensor (get_alloc_size)
            kind = TYPES[t.ty]
            rest = self.judge.rest(t.ne[0], 512) if kind.block > 1 else 0
            if rest:
                size += kind.row(512 - rest)
        t.buffer_id = backend
        t.slot = len(self.sizes[backend])
        self.sizes[backend].append(size)
        self.events[backend].append(t.slot)

    def free(self, t: T) -> None:
        if not t.flags & OUTPUT:
            self.events[t.buffer_id].append(~t.slot)
            t.allocated = False

    def reserve(
        self,
        nodes: Sequence[T],
        node_ids: Sequence[int],
        leafs: Sequence[T],
        leaf_ids: Sequence[int],
        marks: Sequence[int],
    ) -> list[list[tuple[int, int]]]:
        """Record the graph; the positions before the nodes that marks name."""
        allocate, free = self.allocate, self.free
        for t, backend in zip(leafs, leaf_ids):
            allocate(t, backend)
        for t, backend in zip(nodes, node_ids):
            if t.vsrc is not None and t.op != "none":
                t.vsrc.views += 1
            if t.flags & INPUT:
                allocate(t, backend)
            for s in t.src:
                s.children += 1
                if s.flags & INPUT:
                    allocate(s, backend)
        positions = []
        wanted = [*marks, len(nodes) + 1]
        at = 0
        for index, (t, backend) in enumerate(zip(nodes, node_ids)):
            while wanted[at] <= index:
                positions.append(self.position())
                at += 1
            # its sources are allocated: leafs at the beginning, others as nodes before it
            if t.vsrc is None:
                allocate(t, backend)
            for s in t.src:
                s.children -= 1
                if not s.children and not s.views:
                    root = s.vsrc
                    if root is not None:
                        root.views -= 1
                        if not root.views and not root.children and root.allocated:
                            free(root)
                    elif s.allocated:
                        free(s)
        while at < len(marks):
            positions.append(self.position())
            at += 1
        return positions

    def program(
        self,
        buffer: int,
        positions: Sequence[Sequence[tuple[int, int]]] = (),
        order: Sequence[int] = (),
        alike: Sequence[tuple[int, int]] = (),
    ) -> Program:
        """One buffer's events, cut at the positions into parts, which follow each other in an order or as they are."""
        events, slot_sizes = self.events[buffer], self.sizes[buffer]
        distinct: dict[int, int] = {}
        size_of = [distinct.setdefault(size, len(distinct)) for size in slot_sizes]
        parts: list[_Part] = []
        held: list[int] = []  # slots
        e1 = s1 = 0
        for e2, s2 in [*(position[buffer] for position in positions), (len(events), len(slot_sizes))]:
            ends = sorted(len(held) - 1 - held.index(~e) for e in events[e1:e2] if e < 0 and ~e < s1)
            slots = [*range(s1, s2), *[held[-1 - place] for place in ends]]
            number = {slot: i for i, slot in enumerate(slots)}
            numbered = tuple([number[e] if e >= 0 else ~number[~e] for e in events[e1:e2]])
            released = {~e for e in numbered if e < 0}
            stay = tuple([i for i in range(s2 - s1) if i not in released])
            part = _Part(numbered, tuple([size_of[slot] for slot in slots]), tuple(ends), stay)
            part.move_on(held, slots)
            parts.append(part)
            e1, s1 = e2, s2
        if any(parts[a] != parts[b] for a, b in alike):
            raise NotPeriodicError
        if order:
            # what a part releases must be there wherever the part is put
            sizes: list[int] = []
            for index in order:
                part = parts[index]
                own = len(part.size_of) - len(part.ends)
                if [sizes[-1 - place] for place in part.ends if place < len(sizes)] != list(part.size_of[own:]):
                    raise NotPeriodicError
                part.move_on(sizes, part.size_of)
        else:
            order = range(len(parts))
        different: dict[_Part, int] = {}
        numbers = tuple([different.setdefault(parts[index], len(different)) for index in order])
        return Program(tuple([terms(size) for size in distinct]), tuple(different), numbers)


class Fold(NamedTuple):
    """Which layers a graph holds, and which of them stand for those that it leaves out."""

    kept: tuple[int, ...]
    order: tuple[int, ...]  # of every layer, the position in `kept` of the one that is like it
    alike: tuple[tuple[int, int], ...]  # positions of layers that must come out alike
    computes: tuple[bool, ...]  # of the kept layers, whether each has operations of its own
    plain: bool  # whether no layer that stands for another may change the device while it runs


def check_inputs(g: Graph, scheduler: Scheduler) -> None:
    """Split the graph only; an error where a split has too many inputs."""
    scheduler.split(g)


def lay_out(
    g: Graph,
    scheduler: Scheduler,
    padded: Sequence[bool],
    judge: Judgements,
    marks: Sequence[int] = (),
    fold: Fold | None = None,
) -> list[Program]:
    """Split the graph and record what its buffers hold; marks are the nodes at which layers start, and their end."""
    nodes, node_ids, leafs, leaf_ids = scheduler.split(g)
    order: list[int] = []
    alike: list[tuple[int, int]] = []
    if fold is not None:
        # part 0 is what comes before the layers, the last one what comes after them
        if any(here == behind for here, behind, own in zip(marks, marks[1:], fold.computes) if own):
            raise NotPeriodicError
        order = [0, *[position + 1 for position in fold.order], len(marks)]
        alike = [(a + 1, b + 1) for a, b in fold.alike]
        _check_copies(scheduler, marks, order, fold.plain)
    if scheduler.cpu:
        # a mark lies behind the node before it, and before the copies that a split at the mark begins with
        where = {id(t): i for i, t in enumerate(nodes)}
        marks = [where[id(g.nodes[m - 1])] + 1 if m else 0 for m in marks]
    recorder = _Recorder(padded, judge)
    positions = recorder.reserve(nodes, node_ids, leafs, leaf_ids, marks)
    return [recorder.program(buffer, positions, order, alike) for buffer in range(len(padded))]


def _check_copies(scheduler: Scheduler, marks: Sequence[int], order: Sequence[int], plain: bool) -> None:
    """A copy made ahead for a layer that is left out would be missing, and so would one that lives to the end."""
    times = Counter(order)
    for start, uses in scheduler.copied:
        made = bisect.bisect_right(marks, start)
        if plain and times[made] > 1:
            raise NotPeriodicError
        for use in uses:
            used = bisect.bisect_right(marks, use)
            if (times[made] > 1 or times[used] > 1) and (made != used or scheduler.n_copies > 1):
                raise NotPeriodicError
