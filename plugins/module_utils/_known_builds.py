# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of builds of the fork and of upstream. Private to the collection; pure data and one lookup.

`docs/builds.md` shows this table. Every row says where the knowledge comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FORK = "TheTom/llama-cpp-turboquant"
UPSTREAM = "ggml-org/llama.cpp"

DEFAULT_COMMIT = "69d8e4be47243e83b3d0d71e932bc7aa61c644dc"
DEFAULT_NUMBER = 9079


class Row(NamedTuple):
    """What is known of a range of builds of one repository, by the number that `--version` shows."""

    repository: str
    first: int
    # None: up to the newest.
    last: int | None
    # good: verified; bad: refused; note: said as a warning.
    verdict: str
    why: str
    source: str
    # The commit to take in place of a bad one.
    take: str = ""
    # Only builds with one of these backends are meant; empty for all.
    backends: tuple[str, ...] = ()


TABLE: list[Row] = [
    Row(
        FORK,
        DEFAULT_NUMBER,
        DEFAULT_NUMBER,
        "good",
        "the default pin: cache types turbo2, turbo3 and turbo4 run on the CPU, and q8_0/turbo4 answers",
        f"commit {DEFAULT_COMMIT}, 2026-05-04, built and run",
    ),
    Row(
        FORK,
        DEFAULT_NUMBER,
        DEFAULT_NUMBER,
        "note",
        "before ggml-org/llama.cpp#23907 the f16 copy of a quantised KV cache is taken from the CUDA pool after "
        "start, so a long first prompt can run out of memory that --fit counted as free",
        "ggml-org/llama.cpp#23907, ggml-org/llama.cpp#23446",
        backends=("cuda",),
    ),
    Row(
        FORK,
        9914,
        10513,
        "bad",
        "the output with cache type turbo4 is corrupt",
        "TheTom/llama-cpp-turboquant#311 (from b9914 to at least b10513)",
        DEFAULT_COMMIT,
    ),
    Row(
        UPSTREAM,
        0,
        None,
        "note",
        "upstream has no turbo cache types: plan with f16, q8_0 or q4_0",
        "common/arg.cpp of b11434: the list of cache types",
    ),
    Row(
        UPSTREAM,
        10884,
        None,
        "note",
        "--mmap, --no-mmap and --mlock are gone; --load-mode takes their place",
        "tscibilia/home-ops#3803 (crash loop after b10884)",
    ),
]


def repository_of(url: str) -> str:
    """Return which of the repositories of the table a git address names, or an empty string."""
    tail = url.rstrip("/")
    tail = tail[:-4] if tail.endswith(".git") else tail
    for name in (FORK, UPSTREAM):
        if tail == name or tail.endswith(("/" + name, ":" + name)):
            return name
    return ""


def look_up(repository: str, number: int, commit: str, backends: Sequence[str]) -> list[Row]:
    """Return the rows for a build; the default pin is found by its commit wherever it was cloned from."""
    if commit == DEFAULT_COMMIT:
        repository, number = FORK, DEFAULT_NUMBER
    return [
        row
        for row in TABLE
        if row.repository == repository
        and row.first <= number
        and (row.last is None or number <= row.last)
        and (not row.backends or set(row.backends) & set(backends))
    ]


def refusal(rows: list[Row]) -> str | None:
    """Return why a build is refused, or None."""
    for row in rows:
        if row.verdict == "bad":
            until = f"b{row.last}" if row.last is not None else "the newest"
            return (
                f"builds b{row.first} to {until} of {row.repository} are known to be bad: {row.why} ({row.source}). "
                f"Take commit {row.take}, or set llama_build_allow_known_bad to true"
            )
    return None
