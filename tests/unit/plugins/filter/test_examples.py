# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures in the planner's documentation are what the planner says: each is computed and looked for in the text."""

from __future__ import annotations

import importlib
import re

import pytest
import yaml
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _fit
from ansible_collections.llamafleet.turboquant.tests.unit.plugins.module_utils import oracle
from jinja2 import StrictUndefined
from jinja2.nativetypes import NativeEnvironment

NAMES = ["fit_context", "gtt_budget", "kv_cache_bytes", "memory_budget"]
PLUGINS = "ansible_collections.llamafleet.turboquant.plugins.filter"
MIB = 1 << 20
GIB = 1 << 30


class Text:
    """The examples of one filter: run as they stand, and compared with the words around them."""

    def __init__(self, name):
        plugin = importlib.import_module(f"{PLUGINS}.{name}")
        self.name = name
        self.documentation = plugin.DOCUMENTATION
        self.examples = plugin.EXAMPLES
        self.tasks = yaml.safe_load(plugin.EXAMPLES)
        # Comments without their marks and line ends, for a sentence may go over several lines.
        self.words = " ".join(re.sub(r"^ *# ?", "", line) for line in plugin.EXAMPLES.splitlines() if "#" in line)
        self.filter = plugin.FilterModule().filters()[name]

    def render(self, number, text=None, **variables):
        """What a task's template gives, with the task's own variables."""
        task = self.tasks[number]
        action = next(value for key, value in task.items() if key.startswith("ansible.builtin."))
        environment = NativeEnvironment(undefined=StrictUndefined)
        environment.filters[f"llamafleet.turboquant.{self.name}"] = self.filter
        known = dict(variables)
        for key, value in task.get("vars", {}).items():
            known[key] = environment.from_string(value).render(known) if isinstance(value, str) else value
        template = text if text is not None else next(iter(action.values()))
        return environment.from_string(template).render(known)


@pytest.fixture(scope="module")
def gemma():
    return {"model": oracle.header("gemma4-26b-a4b-real")}


def test_figures_of_memory_budget(gemma):
    text = Text("memory_budget")
    assert text.render(1, gemma=gemma).strip() in text.words
    refused = text.render(2, "{{ budget }}", gemma=gemma)
    assert refused["starts"] is False
    (promised,) = re.findall(r"starts is false, and reason ends with '([^']+)'", text.words)
    assert refused["reason"].endswith(promised)
    budget = text.render(1, "{{ budget }}", gemma=gemma)
    weights = sum(device["weights"] for device in budget["devices"].values())
    whole = f"({weights / 10**9:.1f} GB of weights) with its whole context of {budget['context']['n_ctx']} tokens"
    assert whole in text.words
    assert gemma["model"]["metadata"]["gemma4.context_length"] == budget["context"]["n_ctx"]
    caches = {cache["kind"]: cache for cache in budget["caches"]}
    assert len(caches["base"]["layers"]) == 5
    assert (
        f"KV takes {budget['devices']['CUDA0']['kv'] / MIB:.0f} MiB: the five full-attention layers hold "
        f"{caches['base']['cells']} cells, the other {len(caches['swa']['layers'])} only {caches['swa']['cells']}."
    ) in text.words


def test_figures_of_kv_cache_bytes(gemma):
    text = Text("kv_cache_bytes")
    asked = {"ctx_size": 262144, "parallel": 1}
    assert str(asked)[1:-1] in text.examples
    lossless = text.filter(gemma["model"], {**asked, "cache_type_k": "f16", "cache_type_v": "f16"})
    example = int(text.render(0, gemma=gemma))
    assert f"the whole context: {example} bytes with q8_0/turbo4, {lossless} with f16/f16." in text.words


def test_figures_of_fit_context(gemma):
    text = Text("fit_context")
    choice = text.render(0, header=gemma)["options"]
    (promised,) = re.findall(r"choice\.options: (\{[^}]*\})", text.words)
    expected = yaml.safe_load(promised)
    assert list(choice) == list(expected)
    assert {key: choice[key] for key in expected if expected[key] != "..."} == {
        key: value for key, value in expected.items() if value != "..."
    }
    smaller = text.render(1, header=gemma)
    assert smaller["options"]["n_cpu_moe"] > 0
    (card,) = [task["vars"]["gpus"] for task in text.tasks[:1]]
    kept = text.render(2, header=gemma, gpus=card)["options"]
    assert {kept["cache_type_k"], kept["cache_type_v"]} <= {"f16", "q8_0"}


def test_figures_of_gtt_budget():
    text = Text("gtt_budget")
    first = text.render(0)
    assert (
        f"gtt_bytes: {first['gtt_bytes']}, gttsize_mib: {first['gttsize_mib']}, pages_limit: {first['pages_limit']}, "
        f"kernel_args: {{ttm.pages_limit: '{first['kernel_args']['ttm.pages_limit']}'}}"
    ) in text.words
    assert f"sees 125 GiB: {125 - first['gtt_bytes'] / GIB:.1f} GiB stay with the host" in text.words
    second = text.render(1)
    usual = 12288000
    size = f"{usual * 4096 / GIB:.3f} GiB"
    assert f"pages_limit: {second['pages_limit']}; the {usual} of many guides is {size}, and a warning" in text.words
    assert any(str(usual) in warning for warning in second["warnings"])
    third = text.render(2, ansible_facts={"memtotal_mb": 62 * 1024})
    assert any("disagree" in warning for warning in third)


def test_the_rest_of_what_the_documentation_counts():
    documented = {name: " ".join(Text(name).documentation.split()) for name in NAMES}
    assert f"Of the {len(oracle.rows()):,} measured rows" in documented["memory_budget"]
    ladder = ", ".join(f"C({pair.name})" for pair in _fit.LADDER)
    assert f"The default ladder is {ladder}, the least lossy first" in documented["fit_context"]
    loss = {pair.type_v: pair.loss_percent for pair in (*_fit.LADDER, _fit._LAST_RESORT)}
    assert (
        f"(turbo4 +{loss['turbo4']} percent over q8_0, q4_0 +{loss['q4_0']}, turbo3 +{loss['turbo3']})"
        in (documented["fit_context"])
    )
    assert f"turbo2 (+{loss['turbo2']}) is left out" in documented["fit_context"]


def test_an_example_that_went_stale_is_seen(gemma, monkeypatch):
    module = importlib.import_module(f"{PLUGINS}.memory_budget")
    monkeypatch.setattr(module, "EXAMPLES", module.EXAMPLES.replace("20408 MiB", "20409 MiB"))
    with pytest.raises(AssertionError):
        test_figures_of_memory_budget(gemma)
