# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How slow this machine is at the moment: a promise in seconds holds for a machine that is known, not for every one.

The same code predicted 3,500 rows a second on one machine of two processors and 1,900 on another. So a bench times a
piece of work of its own kind beside what it measures, and eases its limit by as much as that work takes longer than on
the machine for which the limit was written, and never by more than twice. A faster machine does not tighten it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Where bench_memory predicts 2,600 rows a second of new contexts, and preflight, gpu_access and gtt_memory take 4.5 s.
REFERENCE_SECONDS = 0.055
# Beyond it a limit would say nothing any more.
MOST = 2.0
_TURNS = 7


class _Tensor:
    def __init__(self, name: str, rows: int) -> None:
        self.name = name
        self.rows = rows

    def size(self) -> int:
        return (self.rows * 34 + 255) // 256 * 256


def _work() -> int:
    """Objects, dictionaries, small integers and names, as in a prediction and as in Ansible."""
    sizes: dict[tuple[str, int], int] = {}
    for number in range(20_000):
        tensor = _Tensor(f"blk.{number % 61}.attn_q", number % 977)
        key = (tensor.name, tensor.rows)
        sizes[key] = max(sizes.get(key, 0), tensor.size())
    return sum(value for _key, value in sorted(sizes.items()))


def slowness(clock: Callable[[], float] = time.process_time) -> float:
    """Return how many times as long as on the machine of the limits this one takes, from 1.0 to MOST.

    `clock` is the one that the bench itself reads: the processor's or the wall's.
    """
    taken = []
    for _turn in range(_TURNS):
        begun = clock()
        _work()
        taken.append(clock() - begun)
    return min(MOST, max(1.0, sorted(taken)[_TURNS // 2] / REFERENCE_SECONDS))
