# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The size of the GTT and the kernel arguments for it."""

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _gtt
from hypothesis import given
from hypothesis import strategies as st

GIB = 1024**3
MIB = 1024**2


# GiB, MiB and pages as the guides of 128 GB machines list them.
@pytest.mark.parametrize(
    ("gib", "mib", "pages"),
    [
        (24, 24576, 6291456),
        (28, 28672, 7340032),
        (48, 49152, 12582912),
        (56, 57344, 14680064),
        (60, 61440, 15728640),
        (96, 98304, 25165824),
        (100, 102400, 26214400),
        (108, 110592, 28311552),
        (112, 114688, 29360128),
        (116, 118784, 30408704),
        (120, 122880, 31457280),
        (124, 126976, 32505856),
    ],
)
def test_sizes_of_the_guides(gib, mib, pages):
    budget = _gtt.gtt_budget(140 * GIB, wanted_bytes=gib * GIB)
    assert budget["gtt_bytes"] == gib * GIB
    assert budget["gttsize_mib"] == mib
    assert budget["pages_limit"] == pages
    assert budget["kernel_args"] == {"ttm.pages_limit": str(pages)}


@pytest.mark.parametrize(
    ("ram_gib", "gtt_gib"),
    [
        (32, 24),  # the reserve of 8 GiB is the larger one
        (64, 56),
        (80, 72),  # both are 8 GiB
        (120, 108),  # a tenth is the larger one
    ],
)
def test_without_a_wish_the_reserve_decides(ram_gib, gtt_gib):
    assert _gtt.gtt_budget(ram_gib * GIB)["gtt_bytes"] == gtt_gib * GIB


def test_reserve_is_honoured_to_the_byte():
    assert _gtt.gtt_budget(64 * GIB, reserve_bytes=6 * GIB)["gtt_bytes"] == 58 * GIB
    assert _gtt.gtt_budget(64 * GIB, wanted_bytes=56 * GIB)["gtt_bytes"] == 56 * GIB
    with pytest.raises(ValueError, match=r"60129542145 bytes\) is above the 56 GiB"):
        _gtt.gtt_budget(64 * GIB, wanted_bytes=56 * GIB + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ram_bytes": 64 * GIB, "wanted_bytes": 57 * GIB}, "above the 56 GiB"),
        ({"ram_bytes": 64 * GIB, "wanted_bytes": 65 * GIB, "reserve_bytes": 0}, "it has 64 GiB and keeps 0 GiB"),
        ({"ram_bytes": 8 * GIB}, "nothing is left to map"),
        ({"ram_bytes": 64 * GIB, "reserve_bytes": 64 * GIB}, "nothing is left to map"),
        ({"ram_bytes": 0}, "must be positive, got 0"),
        ({"ram_bytes": -1}, "must be positive, got -1"),
        ({"ram_bytes": "64G"}, "a number of bytes, got str: '64G'"),
        ({"ram_bytes": True}, "a number of bytes, got bool"),
        ({"ram_bytes": 64.5}, "a number of bytes, got float"),
        ({"ram_bytes": 64 * GIB, "wanted_bytes": 0}, "omit it to take all"),
        ({"ram_bytes": 64 * GIB, "wanted_bytes": "56"}, "wanted_bytes is a number of bytes"),
        ({"ram_bytes": 64 * GIB, "reserve_bytes": -1}, "cannot be negative"),
        ({"ram_bytes": 64 * GIB, "present": 7}, "a kernel command line or a mapping"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        _gtt.gtt_budget(**arguments)


def test_the_customary_pair_that_disagrees_is_named():
    (warning,) = [w for w in _gtt.gtt_budget(62 * GIB, wanted_bytes=48 * GIB)["warnings"] if "customary" in w]
    assert "amdgpu.gttsize=49152 and ttm.pages_limit=12288000 disagree" in warning
    assert "ttm.pages_limit=12582912" in warning
    assert "46.875 GiB" in warning


def test_a_size_that_no_guide_spoils_has_no_warning():
    assert _gtt.gtt_budget(62 * GIB, wanted_bytes=50 * GIB)["warnings"] == []


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ("ro amdgpu.gttsize=49152 ttm.pages_limit=12288000 quiet", ["disagree", "is set on the host"]),
        ({"amdgpu.gttsize": 49152, "ttm.pages_limit": 12288000}, ["disagree", "is set on the host"]),
        ("amdgpu.gttsize=51200 ttm.pages_limit=13107200", []),
        ("amdgpu.gttsize=-1 ttm.pages_limit=13107200", []),  # -1 is the driver's own default
        ("ttm.pages_limit=1 ttm.pages_limit=13107200", []),  # the kernel takes the last one
        ("amdgpu.gttsize=1024 ttm.pages_limit=13107200", ["is never used by the GPU"]),
        ("amdgpu.gttsize=51200", ["is not enough"]),
        ("amdgpu.gtt_size=51200", ["no such parameter"]),
        ("amdttm.pages_limit=13107200 amdttm.page_pool_size=1", ["out-of-tree", "out-of-tree"]),
        ("ttm.pages_limit=50G", ["is no number"]),
        ("ro quiet", []),
    ],
)
def test_arguments_of_a_host_are_judged(present, expected):
    warnings = _gtt.gtt_budget(62 * GIB, wanted_bytes=50 * GIB, present=present)["warnings"]
    assert len(warnings) == len(expected), warnings
    for text, warning in zip(expected, warnings):
        assert text in warning


def test_older_kernels_get_the_matching_gttsize():
    budget = _gtt.gtt_budget(62 * GIB, wanted_bytes=50 * GIB, gttsize=True, page_pool=True)
    assert budget["kernel_args"] == {
        "ttm.pages_limit": "13107200",
        "amdgpu.gttsize": "51200",
        "ttm.page_pool_size": "13107200",
    }
    assert any("deprecated" in warning for warning in budget["warnings"])


def test_what_leaves_the_host_little_warns():
    (warning,) = _gtt.gtt_budget(62 * GIB, wanted_bytes=59 * GIB, reserve_bytes=0)["warnings"]
    assert "the host keeps 3 GiB of 62 GiB" in warning


def test_less_than_the_kernels_own_default_warns():
    (warning,) = _gtt.gtt_budget(62 * GIB, wanted_bytes=24 * GIB)["warnings"]
    assert "less than half of the memory (31 GiB)" in warning


@given(
    ram=st.integers(min_value=1, max_value=2048 * GIB),
    reserve=st.none() | st.integers(min_value=0, max_value=2048 * GIB),
    wanted=st.none() | st.integers(min_value=1, max_value=2048 * GIB),
)
def test_what_is_returned_agrees_with_itself_and_leaves_the_reserve(ram, reserve, wanted):
    try:
        budget = _gtt.gtt_budget(ram, wanted_bytes=wanted, reserve_bytes=reserve)
    except ValueError:
        kept = _gtt.default_reserve(ram) if reserve is None else reserve
        assert ram - kept < MIB or (wanted is not None and wanted > ram - kept)
        return
    kept = _gtt.default_reserve(ram) if reserve is None else reserve
    assert budget["pages_limit"] == budget["gttsize_mib"] * 256
    assert budget["gtt_bytes"] == budget["gttsize_mib"] * MIB
    assert 0 < budget["gtt_bytes"] <= ram - kept
    if wanted is None:
        assert budget["gtt_bytes"] > ram - kept - MIB
    else:
        assert wanted - MIB < budget["gtt_bytes"] < wanted + MIB


APU = {
    "gpus": [
        {"name": "8060S", "vendor": "amd", "integrated": True, "gtt_total_bytes": 62 * _gtt.GIB},
        {"name": "XTX", "vendor": "amd", "integrated": False, "gtt_total_bytes": 62 * _gtt.GIB},
    ],
    "memory": {"ram_total_bytes": 124 * _gtt.GIB, "ttm_pages_limit": 62 * 2**18, "gtt_limit_bytes": 62 * _gtt.GIB},
    "kernel": {"cmdline": "ro quiet"},
}


@pytest.mark.parametrize(
    ("gib", "reserve", "running_mib", "expected_mib"),
    [
        ("auto", "auto", 0, 114278),
        ("plan", "auto", 0, 114278),
        ("auto", 24, 0, 100 * 1024),
        (96, "auto", 0, 96 * 1024),
        ("96.5", "auto", 0, 96.5 * 1024),
        # What the kernel has been started with is near enough.
        ("auto", "auto", 114278 - 256, 114278 - 256),
        ("auto", "auto", 114278 - 257, 114278),
        ("auto", "auto", 114279, 114278),
    ],
)
def test_the_limit_that_the_role_will_set(gib, reserve, running_mib, expected_mib):
    cmdline = f"ro ttm.pages_limit={running_mib * 256}" if running_mib else "ro"
    info = {**APU, "kernel": {"cmdline": cmdline}}
    assert _gtt.limit_to_come(info, gib, reserve) == expected_mib * _gtt.MIB


def test_a_limit_that_the_role_would_refuse_is_refused():
    with pytest.raises(ValueError, match="the host would freeze"):
        _gtt.limit_to_come(APU, 120)


def test_what_will_be_found_after_the_reboot():
    after = _gtt.with_limit(APU, 108 * _gtt.GIB)
    assert [gpu["gtt_total_bytes"] // _gtt.GIB for gpu in after["gpus"]] == [108, 62]
    assert after["memory"]["ttm_pages_limit"] == 108 * 2**18
    assert _gtt.limit_now(after) == 108 * _gtt.GIB
    assert _gtt.limit_now(APU) == 62 * _gtt.GIB
    assert APU["gpus"][0]["gtt_total_bytes"] == 62 * _gtt.GIB
    # TTM's own limit holds, whatever the driver promises.
    assert _gtt.limit_now({**after, "memory": {**after["memory"], "ttm_pages_limit": 2**18}}) == _gtt.GIB
    assert _gtt.limit_now({**APU, "gpus": APU["gpus"][1:]}) is None
