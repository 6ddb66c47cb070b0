# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter fit_context: what a template sees."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.llamafleet.turboquant.plugins.filter.fit_context import FilterModule

GIB = 1024**3
HEADER = Path(__file__).parents[3] / "data" / "oracle" / "models" / "llama31-8b-real.json.gz"
GPU = [{"name": "CUDA0", "backend": "cuda", "total_bytes": 12 * GIB, "free_bytes": 12 * GIB}]
fit_context = FilterModule().filters()["fit_context"]


@pytest.fixture(name="header")
def _header():
    with gzip.open(HEADER, "rt", encoding="utf-8") as file:
        return json.load(file)


def test_returns_options_with_their_budget(header):
    got = fit_context(header, devices=GPU, options={"parallel": 1}, max_ctx=65536)
    assert got["options"] == {
        "parallel": 1,
        "ctx_size": 65536,
        "cache_type_k": "q8_0",
        "cache_type_v": "q8_0",
        "fit": False,
    }
    assert got["budget"]["context"]["n_ctx"] == 65536
    json.dumps(got, allow_nan=False)


def test_nothing_fits_is_a_filter_error(header):
    small = [{**GPU[0], "free_bytes": 4 * GIB}]
    with pytest.raises(AnsibleFilterError, match=r"fit_context: nothing fits: .*what would make it fit"):
        fit_context(header, devices=small)


def test_an_unknown_keyword_is_a_filter_error(header):
    with pytest.raises(AnsibleFilterError, match="headroom_byte'"):
        fit_context(header, devices=GPU, headroom_byte=1)
