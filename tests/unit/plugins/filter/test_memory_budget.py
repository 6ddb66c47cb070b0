# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters memory_budget and kv_cache_bytes as templates use them."""

from __future__ import annotations

import ansible.template
import pytest
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible_collections.llamafleet.turboquant.plugins.filter.kv_cache_bytes import FilterModule as KvFilter
from ansible_collections.llamafleet.turboquant.plugins.filter.memory_budget import FilterModule as BudgetFilter
from ansible_collections.llamafleet.turboquant.tests.unit.plugins.module_utils import oracle

MODEL = "gemma4-26b-a4b-real"
# ansible-core 2.19 and later run templates only where they are trusted
trust = getattr(ansible.template, "trust_as_template", str)
budget = BudgetFilter().filters()["memory_budget"]
kv_bytes = KvFilter().filters()["kv_cache_bytes"]
CARD = [{"name": "CUDA0", "backend": "cuda", "total_bytes": 24 << 30, "free_bytes": 25232932864}]
ASKED = {
    "ctx_size": 262144,
    "parallel": 1,
    "cache_type_k": "q8_0",
    "cache_type_v": "turbo4",
    "flash_attn": "on",
}


def test_the_example_of_the_documentation_is_true():
    b = budget(oracle.header(MODEL), CARD, ASKED)
    assert b["accepted"], b["reason"]
    card = b["devices"]["CUDA0"]
    assert (card["weights"], card["kv"], card["compute"], card["other"]) == (
        16774317056,
        2264432640,
        865226752,
        1495269376,
    )
    assert card["total"] >> 20 == 20407
    assert kv_bytes(oracle.header(MODEL), ASKED) == 2264432640
    assert kv_bytes(oracle.header(MODEL), {"ctx_size": 262144, "parallel": 1}) == 5683281920


def test_errors_are_filter_errors():
    for call in (budget, kv_bytes):
        with pytest.raises(AnsibleFilterError, match="cache_type_k"):
            call(oracle.header(MODEL), options={"cache_type_k": "q9"})
        with pytest.raises(AnsibleFilterError, match="known builds"):
            call(oracle.header(MODEL), build="b0")
        with pytest.raises(AnsibleFilterError, match="must be"):
            call("a path")


def test_values_of_templates_are_taken():
    """Ansible hands over tagged strings and lazy containers."""
    variables = {"model": oracle.header(MODEL), "card": CARD, "asked": dict(ASKED, ctx_size=trust("{{ 256 * 1024 }}"))}
    templar = ansible.template.Templar(DataLoader(), variables=variables)
    plain = budget(oracle.header(MODEL), CARD, ASKED)
    lazy = templar.template(trust("{{ {'model': model, 'card': card, 'asked': asked} }}"))
    assert budget(lazy["model"], lazy["card"], lazy["asked"]) == plain
