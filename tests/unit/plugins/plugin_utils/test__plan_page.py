# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of the plan: well formed, self-contained, readable without seeing it, and true to the plan."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _plan
from ansible_collections.llamafleet.turboquant.plugins.plugin_utils import _plan_page
from ansible_collections.llamafleet.turboquant.tests.unit.plan_data import GIB, device, host, plan

OPEN = {"ctx_size": "auto", "cache_type_k": "auto", "cache_type_v": "auto"}
FIXED = {"ctx_size": 32768, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}
VOID = {"meta"}


class Checker(HTMLParser):
    """Every element is closed in order; keeps what the tests look at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def fleet() -> dict[str, Any]:
    card = device("CUDA0", 23.5)
    rows = [
        {"name": "chat", "model": "gemma4-26b-a4b-real", **OPEN},
        {"name": "small", "model": "lfm2-1.2b-real", **FIXED},
    ]
    return plan(
        *(host(f"ada{n}", rows, [card]) for n in range(3)),
        host("tight", [{"name": "chat", "model": "gemma3-27b-real", **FIXED}], [device("CUDA0", 12)]),
        host(
            "vk",
            [{"name": "chat", "model": "llama31-8b-real", **FIXED, "cache_type_v": "turbo4"}],
            [device("Vulkan0", 16, "vulkan")],
        ),
        host("apu", [{"name": "chat", "model": "gpt-oss-20b-real", **FIXED}], [device("ROCm0", 96, "rocm", True)], 122),
        host("cpu", [{"name": "chat", "model": "lfm2-1.2b-real", **OPEN}], [], None),
        host("lost", [{"name": "chat", "model": "lfm2-1.2b-real", **OPEN}], [], problem="not reached"),
    )


@pytest.fixture(name="planned", scope="module")
def planned_fixture() -> dict[str, Any]:
    return fleet()


@pytest.fixture(name="page", scope="module")
def page_fixture(planned: dict[str, Any]) -> str:
    return _plan_page.page(planned)


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    checker = check(page)
    assert page.startswith("<!doctype html>")
    for tag, attributes in checker.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "image", "use")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?://", page)


def test_every_link_and_label_has_its_target(page: str) -> None:
    elements = check(page).elements
    identities = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    wanted = {(attributes["href"] or "")[1:] for _, attributes in elements if "href" in attributes}
    wanted |= {attributes["aria-labelledby"] or "" for _, attributes in elements if "aria-labelledby" in attributes}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(identities)


def test_every_picture_is_told_in_words(page: str) -> None:
    pictures = [attributes for tag, attributes in check(page).elements if tag == "svg"]
    assert len(pictures) > 10
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert attributes.get("aria-label") or attributes.get("aria-labelledby")


def test_every_host_and_instance_is_there(page: str, planned: dict[str, Any]) -> None:
    text = " ".join(check(page).text)
    for planned_host in planned["hosts"]:
        assert planned_host["name"] in text
        for row in planned_host["instances"]:
            assert row["reason"] in text
            for warning in row["warnings"]:
                assert warning in text
    assert "ada0 and 2 more like it" in text
    assert (
        "4 of 8 hosts cannot run as declared" in text or f"{planned['summary']['hosts_not_fitting']} of 8 hosts" in text
    )


def test_the_bars_add_up(planned: dict[str, Any]) -> None:
    """The widths of a bar's parts are in the proportion of their bytes, against what is there."""
    for planned_host in planned["hosts"]:
        for place in _plan_page._places(planned_host):
            if place["room"] is None or not place["segments"]:
                continue
            assert sum(size for *_, size in place["segments"]) == place["needed"]
            bar = _plan_page._bar(place)
            widths = [
                float(w)
                for w in re.findall(
                    r'<rect class="(?:weights|kv|recurrent|compute|output|other)"[^>]* width="([0-9.]+)"', bar
                )
            ]
            drawn = sum(widths) / 1000
            assert drawn == pytest.approx(place["needed"] / max(place["room"], place["needed"]), abs=0.01)


def test_a_bar_that_is_too_long_shows_where_the_room_ends() -> None:
    place = {
        "label": "CUDA0",
        "about": "",
        "room": GIB,
        "needed": 2 * GIB,
        "segments": [("a", "weights", "Weights", 2 * GIB)],
    }
    bar = _plan_page._bar(place)
    assert 'class="limit" x1="500"' in bar
    assert "1.00 GiB too little" in bar
    assert "limit" not in _plan_page._bar({**place, "room": 3 * GIB})


def test_the_plot_marks_the_choice_and_the_limit(planned: dict[str, Any]) -> None:
    row = planned["hosts"][0]["instances"][0]
    plot = planned["plots"][row["plot"]]
    drawn = _plan_page._plot("chat", plot, "x")
    assert drawn.count("<polyline") == len(plot["lines"])
    assert drawn.count('class="line chosen"') == 1
    assert "limit of CUDA0: 23.50 GiB" in drawn
    assert f"{_plan_page.context_label(row['context']['n_ctx'])}, " in drawn
    numbers = [float(n) for n in re.findall(r'points="([^"]+)"', drawn)[0].replace(",", " ").split()]
    assert all(0 <= n <= 1000 for n in numbers[::2])
    far = _plan_page._plot("chat", {**plot, "limit_bytes": 500 * GIB}, "x")
    assert "lies far above" in far
    assert "limit of" not in far
    assert _plan_page._plot("chat", {**plot, "lines": []}, "x") == ""


def test_labels_at_the_lines_ends_do_not_overlap(planned: dict[str, Any]) -> None:
    for plot in planned["plots"].values():
        scale = _plan_page._Scale(2048, 262144, 30)
        labels = _plan_page._end_labels(plot["lines"], "", scale)
        heights = sorted(float(re.search(r' y="([0-9.]+)"', label)[1]) for label in labels)  # type: ignore[index] # it is there
        assert all(b - a >= 14.9 for a, b in zip(heights, heights[1:]))


def test_names_cannot_bring_markup() -> None:
    evil = '<script>alert("x")</script>&'
    planned = plan(
        host(evil, [{"name": evil, "model": evil, **FIXED}, {"name": "'\"<b>", "model": "lfm2-1.2b-real", **FIXED}], [])
    )
    page = _plan_page.page(planned)
    checker = check(page)
    assert "script" not in {tag for tag, _ in checker.elements}
    assert evil in "".join(checker.text)


@pytest.mark.parametrize("top", [25, 1.1, 0.4, 110, 1, 0.013])
def test_ticks_are_few_and_round(top: float) -> None:
    found = _plan_page._ticks(top)
    assert 4 <= len(found) <= 9
    assert found[0] == 0
    assert found[-1] <= top


def test_an_unlimited_ram_is_drawn_without_a_limit() -> None:
    planned = plan(host("h", [{"name": "a", "model": "lfm2-1.2b-real", **FIXED}], [], None))
    (place,) = _plan_page._places(planned["hosts"][0])
    assert place["room"] is None
    assert "size not declared" in _plan_page.page(planned)


def test_the_page_of_a_large_fleet_is_small_and_soon_made() -> None:
    one = host("n", [{"name": "a", "model": "gemma4-26b-a4b-real", **FIXED}], [device("CUDA0", 23.5)])
    planned = plan(*[one._replace(name=f"n{n:04d}") for n in range(1000)])
    page = _plan_page.page(planned)
    check(page)
    assert len(page) < 2_500_000
    assert page.count("<polyline") == len(planned["plots"]["p0"]["lines"])
    assert all(f"n{n:04d}" in page for n in range(1000))


def test_verdicts_all_have_a_mark() -> None:
    for verdict in _plan.VERDICTS:
        assert verdict in _plan_page._pill(verdict)
