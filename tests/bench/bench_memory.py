#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows a second that memory_budget predicts, over the measured rows in tests/data/oracle.

usage: bench_memory.py [--first ROWS] [--new ROWS] [--again ROWS]
       run in a tree below ansible_collections/llamafleet/turboquant

Time is the processor's, not the clock's, and the prediction's alone: headers are read and checked before. Three
figures, because they differ: the first pass, in which nothing is remembered, so that each graph is built on the way;
the same rows again; and the same rows with contexts that were not asked before, as a search for the largest context
asks for them. The last two are the best of three passes, which a neighbour on the machine disturbs less. Fewer rows a
second than an option names are a failure.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import yardstick

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP.parents[2]))
sys.path.insert(0, str(TOP / "tests" / "unit" / "plugins" / "module_utils"))

import oracle  # noqa: E402
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _memory  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("first", "again", "new"):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="ROWS", help="the least rows a second")
    arguments = parser.parse_args()
    work = []
    for row in oracle.rows():
        options = {**oracle.options(row["args"]), "program": row["program"]}
        work.append((oracle.loaded(row["model"]), oracle.devices(row), options, row["env"]))

    def passes(more: int) -> float:
        start = time.process_time()
        for model, devices, options, env in work:
            asked = dict(options, ctx_size=options["ctx_size"] + more) if options.get("ctx_size") else options
            _memory.memory_budget(model, devices, asked, env=env)
        return len(work) / (time.process_time() - start)

    slowness = yardstick.slowness()
    first = passes(0)
    again = max(passes(0) for _turn in range(3))
    passes(256)
    moved = max(passes(256 * turn) for turn in range(2, 5))
    slowness = max(slowness, yardstick.slowness())
    print(f"memory_budget, {len(work)} rows of {len({id(w[0]) for w in work})} models")
    print(f"  first time   {first:9.0f} rows/s (nothing remembered: builds the graphs)")
    print(f"  again        {again:9.0f} rows/s (all of it remembered)")
    print(f"  new contexts {moved:9.0f} rows/s (graphs remembered, results not)")
    print(f"  this machine takes {slowness:.2f} times as long as that of the limits")
    slow = [
        f"{name}: fewer than {least / slowness:.0f} rows/s"
        for name, least, got in (
            ("first time", arguments.first, first),
            ("again", arguments.again, again),
            ("new contexts", arguments.new, moved),
        )
        if got < least / slowness
    ]
    print("\n".join(slow), file=sys.stderr, end="\n" if slow else "")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
