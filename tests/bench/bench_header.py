#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seconds to read a header of Gemma 4's size: 262,144 tokens, 514,906 merges, 833 tensors.

usage: bench_header.py [--limit SECONDS]   run in a tree below ansible_collections/llamafleet/turboquant
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP.parents[2]))

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _gguf, _gguf_source  # noqa: E402
from ansible_collections.llamafleet.turboquant.tests.unit.gguf_writer import Writer, vocabulary  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=0.3, help="the median may be no longer (%(default)s s)")
    limit = parser.parse_args().limit
    writer = Writer("<")
    tensors = [[f"blk.{i}.ffn_down.weight", [256, 4], "Q4_K", 576] for i in range(833)]
    head, data = writer.header({"general.architecture": "gemma4", **vocabulary(writer, 262_144, 514_906)}, tensors)
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(head + bytes(data))
        file.flush()
        seconds = []
        for _ in range(7):
            began = time.perf_counter()
            _gguf.describe(_gguf_source.read_parts([_gguf_source.FileSource(file.name)]))
            seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    print(f"header of {len(head):,} bytes: median {median:.3f} s of {len(seconds)}, best {min(seconds):.3f} s")
    return 1 if median > limit else 0


if __name__ == "__main__":
    sys.exit(main())
