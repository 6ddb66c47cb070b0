# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan as one page: HTML with its pictures in it, nothing loaded from elsewhere, no script.

Private to the collection. Everything that comes from an inventory or a model passes through C{_e}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _plan

GIB = _plan.GIB

# What a bar is made of, in the order in which it is drawn.
PARTS = (
    ("weights", "Weights"),
    ("kv", "K/V cache"),
    ("recurrent", "Recurrent state"),
    ("compute", "Compute"),
    ("output", "Logits"),
    ("other", "Driver, scratch"),
)
_MARKS = {_plan.FITS: "✓", _plan.SHORT: "✕", _plan.REFUSED: "⊘", _plan.UNKNOWN: "?"}
_CLASSES = {_plan.FITS: "ok", _plan.SHORT: "bad", _plan.REFUSED: "bad", _plan.UNKNOWN: "odd"}

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1d2126; --soft: #5b6470; --line: #d9dce0; --track: #eceef0;
  --ok: #17703c; --ok-bg: #e2f3e8; --bad: #b3261e; --bad-bg: #fbe6e4; --odd: #7a5600; --odd-bg: #fbf0d2;
  --weights: #3b6fb6; --kv: #d9822b; --recurrent: #8e5bb5; --compute: #2f9e8f; --output: #b8a12c; --other: #8b93a0;
  --c0: #1f4e9c; --c1: #0e7c86; --c2: #3f8f3f; --c3: #a07a00; --c4: #c25e12; --c5: #b03060;
  --c6: #7a4fb0; --c7: #555d68;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1d2126; --ink: #e8eaed; --soft: #a3abb5; --line: #343a42; --track: #2a2f36;
    --ok: #7fd7a0; --ok-bg: #17382a; --bad: #ff9c94; --bad-bg: #47211f; --odd: #f0cd76; --odd-bg: #3d3216;
    --weights: #6d9fe0; --kv: #eda052; --recurrent: #b88adb; --compute: #56c4b4; --output: #d6c152; --other: #8b93a0;
    --c0: #7fb0ff; --c1: #4fd0da; --c2: #86d486; --c3: #e3bf4a; --c4: #f59a57; --c5: #f285ad;
    --c6: #c19bf0; --c7: #aab2bd;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; letter-spacing: -.005em; }
h3 { font-size: 1.05rem; margin: 0; }
h4 { font-size: .92rem; margin: 1.3rem 0 .3rem; }
p { margin: .3rem 0; max-width: 75ch; } p.wide { max-width: none; }
.soft, caption, figcaption { color: var(--soft); }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .15em; }
code { font: .92em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0 0;
  padding: 0; list-style: none; }
.tiles li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.55rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles .bad b { color: var(--bad); } .tiles .ok b { color: var(--ok); } .tiles .odd b { color: var(--odd); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.3rem 1.3rem;
  margin: 0 0 1.2rem; }
.head { display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: baseline; justify-content: space-between; }
.pill { display: inline-block; border-radius: 99px; padding: .05rem .65rem; font-size: .84rem; font-weight: 600;
  white-space: nowrap; }
.pill.ok { background: var(--ok-bg); color: var(--ok); } .pill.bad { background: var(--bad-bg); color: var(--bad); }
.pill.odd { background: var(--odd-bg); color: var(--odd); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 .3rem; font-size: .86rem; }
th, td { text-align: left; padding: .32rem .7rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; font-size: .82rem; white-space: nowrap; }
tbody th { font-weight: 600; }
td.n, th.n { text-align: right; white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .5rem 0 0; padding: 0; list-style: none;
  font-size: .84rem; color: var(--soft); }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 3px; margin-right: .4rem;
  vertical-align: -.05rem; }
ul.plain { margin: .4rem 0; padding-left: 1.1rem; } ul.plain li { margin: .2rem 0; max-width: 95ch; }
ul.warn li::marker { content: "⚠ "; color: var(--odd); } ul.stop li::marker { content: "✕ "; color: var(--bad); }
figure { margin: 1.1rem 0 0; } figcaption { font-size: .86rem; margin: 0 0 .3rem; max-width: 95ch; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, "Segoe UI", sans-serif; fill: var(--ink); }
svg .soft { fill: var(--soft); } svg .num { font-variant-numeric: tabular-nums; }
svg.mini { width: 100%; min-width: 9rem; height: .85rem; border-radius: 3px; }
.track { fill: var(--track); } .grid { stroke: var(--line); stroke-width: 1; }
.limit { stroke: var(--bad); stroke-width: 1.6; stroke-dasharray: 5 4; } text.limit { stroke: none; fill: var(--bad); }
.over { fill: var(--bad); opacity: .13; }
.weights { fill: var(--weights); background: var(--weights); } .kv { fill: var(--kv); background: var(--kv); }
.recurrent { fill: var(--recurrent); background: var(--recurrent); }
.compute { fill: var(--compute); background: var(--compute); }
.output { fill: var(--output); background: var(--output); } .other { fill: var(--other); background: var(--other); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .line.chosen { stroke-width: 3.4; }
.halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
details { margin: .8rem 0 0; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
summary:focus-visible, a:focus-visible { outline: 2px solid var(--weights); outline-offset: 2px; }
.names { font-size: .9rem; color: var(--soft); overflow-wrap: anywhere; }
@media print { body { background: #fff; } .card { break-inside: avoid; } details > * { display: block; } }
"""


def _e(value: Any) -> str:
    return escape(str(value), quote=True)


def _n(value: float) -> str:
    """A coordinate, as short as it can be."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _pill(verdict: str) -> str:
    return f'<span class="pill {_CLASSES[verdict]}">{_MARKS[verdict]} {_e(verdict)}</span>'


def context_label(size: int) -> str:
    return f"{size // 1024}K" if size % 1024 == 0 else f"{size:,}"


# ---- bars


def _segments(host: Mapping[str, Any], device: str) -> list[tuple[str, str, str, int]]:
    """What lies on a device: (instance, class, name of the part, bytes)."""
    found = []
    for row in host["instances"]:
        if row["state"] != "started" or device not in row.get("memory", {}):
            continue
        part = row["memory"][device]
        found += [(row["name"], key, label, part.get(key, 0)) for key, label in PARTS if part.get(key, 0) > 0]
    return found


def _places(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is drawn for a host: its devices and its RAM, each with the room for models and what is needed."""
    places = []
    for device in host["devices"]:
        kind = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}[device["backend"]]
        shared = ", shares the RAM" if device.get("integrated") else ""
        places.append(
            {
                "key": device["name"],
                "label": device["name"],
                "about": f"{kind}{shared}, {_plan.gib(device['total_bytes'])}",
                "room": device["free_bytes"],
                "needed": device["needed_bytes"],
                "segments": _segments(host, device["name"]),
            }
        )
    segments = _segments(host, "host")
    ram = host["ram"]
    if ram is not None:
        if ram["mapped_by_gpus_bytes"]:
            segments = [("", "other", "Mapped by the GPU", ram["mapped_by_gpus_bytes"]), *segments]
        places.append(
            {
                "key": "host",
                "label": "RAM",
                "about": f"{_plan.gib(ram['total_bytes'])}, {_plan.gib(ram['reserve_bytes'])} of them for the system",
                "room": ram["usable_bytes"],
                "needed": ram["needed_bytes"],
                "segments": segments,
            }
        )
    elif segments:
        needed = sum(size for *_skipped, size in segments)
        places.append(
            {
                "key": "host",
                "label": "RAM",
                "about": "size not declared",
                "room": None,
                "needed": needed,
                "segments": segments,
            }
        )
    return places


def _bar(place: Mapping[str, Any]) -> str:
    """One device: what is needed, stacked, against the room that there is."""
    width, height, top = 1000.0, 30.0, 20.0
    room, needed = place["room"], place["needed"]
    scale = width / max(room or 0, needed, 1)
    left = None if room is None else room - needed
    words = f"{_plan.gib(needed)} needed"
    if left is not None:
        words += f" of {_plan.gib(room)}, " + (
            f"{_plan.gib(left)} free" if left >= 0 else f"{_plan.gib(-left)} too little"
        )
    spoken = "; ".join(
        f"{name or 'GPU'} {label} {_plan.gib(size)}" for name, _skipped, label, size in place["segments"]
    )
    aria = _e(f"{place['label']}: {words}. {spoken}")
    alarm = "" if left is None or left >= 0 else " limit"
    out = [
        f'<svg viewBox="0 0 1000 {_n(top + height + 18)}" role="img" aria-label="{aria}">',
        f'<text x="0" y="13" font-weight="600">{_e(place["label"])}</text>',
        f'<text x="{9 + 8.5 * len(place["label"])}" y="13" class="soft">{_e(place["about"])}</text>',
        f'<text x="1000" y="13" text-anchor="end" class="num{alarm}">{_e(words)}</text>',
        f'<rect class="track" x="0" y="{_n(top)}" width="1000" height="{_n(height)}" rx="4"/>',
    ]
    x = 0.0
    owner = None
    labels = []
    for name, css, label, size in place["segments"]:
        span = size * scale
        if name != owner:
            if owner is not None:
                out.append(
                    f'<rect x="{_n(x - 1)}" y="{_n(top - 2)}" width="2" height="{_n(height + 4)}" fill="var(--card)"/>'
                )
            owner = name
            labels.append((x, name))
        out.append(
            f'<rect class="{css}" x="{_n(x)}" y="{_n(top)}" width="{_n(max(span, 0.6))}" height="{_n(height)}">'
            f"<title>{_e(name)} {_e(label)}: {_e(_plan.gib(size))}</title></rect>"
        )
        text = _plan.gib(size)
        if span > 8 * len(text):
            out.append(
                f'<text x="{_n(x + span / 2)}" y="{_n(top + 19.5)}" text-anchor="middle" class="num"'
                f' style="fill: var(--card); font-weight: 600">{_e(text)}</text>'
            )
        x += span
    if room is not None and needed > room:
        at = room * scale
        out.append(f'<rect class="over" x="{_n(at)}" y="{_n(top)}" width="{_n(width - at)}" height="{_n(height)}"/>')
        out.append(f'<line class="limit" x1="{_n(at)}" x2="{_n(at)}" y1="{_n(top - 3)}" y2="{_n(top + height + 3)}"/>')
    if len({name for name, *_skipped in place["segments"]}) > 1:
        next_free = 0.0
        for at, name in labels:
            begin = max(at, next_free)
            out.append(f'<text x="{_n(begin)}" y="{_n(top + height + 14)}" class="soft">{_e(name)}</text>')
            next_free = begin + 7 * len(name) + 12
    out.append("</svg>")
    return "".join(out)


def _mini(place: Mapping[str, Any]) -> str:
    room, needed = place["room"], place["needed"]
    scale = 100 / max(room or 0, needed, 1)
    share = "" if not room else f", {100 * needed / room:.0f} % of {_plan.gib(room)}"
    sums: dict[str, int] = {}
    for _skipped, css, _skipped, size in place["segments"]:
        sums[css] = sums.get(css, 0) + size
    aria = _e(f"{place['label']}: {_plan.gib(needed)}{share}")
    out = [
        f'<svg class="mini" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{aria}">',
        '<rect class="track" width="100" height="8"/>',
    ]
    x = 0.0
    for css, _skipped in PARTS:
        if css in sums:
            out.append(f'<rect class="{css}" x="{_n(x)}" width="{_n(sums[css] * scale)}" height="8"/>')
            x += sums[css] * scale
    if room is not None and needed > room:
        out.append(f'<line class="limit" x1="{_n(room * scale)}" x2="{_n(room * scale)}" y1="0" y2="8"/>')
    out.append("</svg>")
    return "".join(out)


# ---- the plot

_WIDTH, _HEIGHT = 1000.0, 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 128.0, 26.0, 40.0
_FLOOR = _HEIGHT - _BOTTOM


class _Scale:
    """Where a context and a number of bytes lie in the picture."""

    def __init__(self, low: float, high: float, ceiling: float) -> None:
        self.low, self.high, self.ceiling = low, high, ceiling

    def x(self, size: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log2(size / self.low) / math.log2(self.high / self.low)

    def y(self, nbytes: float) -> float:
        return _TOP + (_FLOOR - _TOP) * (1 - nbytes / GIB / self.ceiling)


def _ticks(top: float) -> list[float]:
    """Round steps up to a value in GiB: four to eight of them."""
    step = 10.0 ** math.floor(math.log10(max(top, 1e-6)))
    step *= next(factor for factor in (0.1, 0.2, 0.25, 0.5, 1, 2) if top / (step * factor) <= 8)
    return [step * n for n in range(int(top / step) + 1)]


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _text(words: str, x: float, y: float, css: str = "", anchor: str = "start", more: str = "") -> str:
    return f'<text class="{css}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{more}>{_e(words)}</text>'


def _axes(scale: _Scale) -> list[str]:
    out = [_text("GiB", _LEFT - 8, _TOP - 14, "soft", "end")]
    for tick in _ticks(scale.ceiling):
        at = scale.y(tick * GIB)
        out.append(_line("grid", _LEFT, at, _WIDTH - _RIGHT, at))
        out.append(_text(f"{tick:g}", _LEFT - 8, at + 4, "soft num", "end"))
    at = _LEFT
    for size in (1024 * 2**n for n in range(1, 14)):
        if scale.low <= size <= scale.high:
            at = scale.x(size)
            out.append(_line("grid", at, _FLOOR, at, _FLOOR + 5))
            out.append(_text(context_label(size), at, _FLOOR + 19, "soft num", "middle"))
    if scale.high - 2 ** math.floor(math.log2(scale.high)) > 0 and scale.x(scale.high) - at > 40:
        out.append(_line("grid", scale.x(scale.high), _FLOOR, scale.x(scale.high), _FLOOR + 5))
        out.append(_text(context_label(int(scale.high)), scale.x(scale.high), _FLOOR + 19, "soft num", "middle"))
    out.append(_text("context in tokens", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, "soft", "middle"))
    return out


def _end_labels(lines: Sequence[Mapping[str, Any]], chosen: str, scale: _Scale) -> list[str]:
    """The pairs' names at the lines' ends, pushed apart where the lines meet."""
    ends = sorted(
        (max(scale.y(line["points"][-1][1]), _TOP + 4), scale.x(line["points"][-1][0]), _pair(line), index)
        for index, line in enumerate(lines)
    )
    heights: list[float] = []
    for at, *_skipped in ends:
        heights.append(max(at, heights[-1] + 15) if heights else at)
    limit = _FLOOR
    for index in range(len(heights) - 1, -1, -1):
        heights[index] = min(heights[index], limit)
        limit = heights[index] - 15
    return [
        _text(
            pair,
            at_x + 9,
            height + 4,
            more=f' style="fill: var(--c{index % 8})"' + (' font-weight="700"' if pair == chosen else ""),
        )
        for height, (_skipped, at_x, pair, index) in zip(heights, ends)
    ]


def _pair(line: Mapping[str, Any]) -> str:
    return f"{line['type_k']}/{line['type_v']}"


def _plot(name: str, plot: Mapping[str, Any], identity: str) -> str:
    """Memory of a device against the context, a line for each pair of cache types, with the device's limit."""
    lines, limit, chosen = plot["lines"], plot["limit_bytes"], _pair(plot)
    if not lines:
        return ""
    sizes = [size for line in lines for size, _skipped in line["points"]]
    most = max(nbytes for line in lines for _skipped, nbytes in line["points"])
    # The limit stands in the picture where the lines come near it, and is told in words where they do not.
    ceiling = max(most, limit if limit is not None and limit < 3 * most else 0) * 1.06 / GIB
    ceiling = min(ceiling, 2.2 * limit / GIB) if limit else ceiling
    scale = _Scale(min(sizes), max([*sizes, 2 * min(sizes)]), ceiling)
    drawn = limit is not None and limit / GIB < ceiling
    where = "RAM" if plot["device"] == "host" else plot["device"]
    caption = (
        f"Memory of <b>{_e(where)}</b> against the context of one <b>{_e(name)}</b>, for the pairs of K/V cache types"
        f" that run here. Planned: {_e(chosen)} at {_e(context_label(plot['context']))}."
    )
    if limit is not None and not drawn:
        caption += f" The limit, {_e(_plan.gib(limit))}, lies far above."
    spoken = "; ".join(
        f"{_pair(line)}: {_plan.gib(line['points'][-1][1])} at {context_label(line['points'][-1][0])}" for line in lines
    )
    clip = f'x="{_n(_LEFT)}" y="{_n(_TOP)}" width="{_n(_WIDTH - _LEFT - _RIGHT)}" height="{_n(_FLOOR - _TOP)}"'
    out = [
        f'<figure><figcaption id="{identity}">{caption}</figcaption>',
        f'<svg viewBox="0 0 {_n(_WIDTH)} {_n(_HEIGHT)}" role="img" aria-labelledby="{identity}">',
        f'<desc>{_e(spoken)}</desc><clipPath id="{identity}c"><rect {clip}/></clipPath>',
    ]
    if drawn:
        out.append(
            f'<rect class="over" x="{_n(_LEFT)}" y="{_n(_TOP)}" width="{_n(_WIDTH - _LEFT - _RIGHT)}"'
            f' height="{_n(scale.y(limit) - _TOP)}"/>'
        )
    out += _axes(scale)
    for index, line in enumerate(lines):
        points = " ".join(f"{_n(scale.x(size))},{_n(scale.y(nbytes))}" for size, nbytes in line["points"])
        out.append(
            f'<polyline class="line{" chosen" if _pair(line) == chosen else ""}" style="stroke: var(--c{index % 8})"'
            f' clip-path="url(#{identity}c)" points="{points}"><title>{_e(_pair(line))}</title></polyline>'
        )
    out += _end_labels(lines, chosen, scale)
    if drawn:
        at = scale.y(limit)
        # Beside the line's beginning, on the side where no other line begins.
        crowded = any(0 <= at - scale.y(line["points"][0][1]) < 24 for line in lines)
        out.append(_line("limit", _LEFT, at, _WIDTH - _RIGHT, at))
        out.append(
            _text(f"limit of {where}: {_plan.gib(limit)}", _LEFT + 8, at + (15 if crowded else -7), "limit halo")
        )
    point = _at(lines, plot)
    if point is not None:
        cx, cy = scale.x(plot["context"]), scale.y(point)
        index = next(n for n, line in enumerate(lines) if _pair(line) == chosen)
        out.append(
            f'<circle cx="{_n(cx)}" cy="{_n(cy)}" r="5.5" stroke-width="3"'
            f' style="fill: var(--card); stroke: var(--c{index % 8})"/>'
        )
        words = f"{context_label(plot['context'])}, {_plan.gib(point)}"
        late = cx > _WIDTH / 2
        out.append(
            _text(
                words,
                cx - 10 if late else cx + 10,
                cy - 9,
                "halo num",
                "end" if late else "start",
                ' font-weight="700"',
            )
        )
    out.append("</svg></figure>")
    return "".join(out)


def _at(lines: Sequence[Mapping[str, Any]], plot: Mapping[str, Any]) -> float | None:
    """Where the planned context lies on its line, between the two points around it."""
    for line in lines:
        if (line["type_k"], line["type_v"]) != (plot["type_k"], plot["type_v"]):
            continue
        points = line["points"]
        for (size_a, bytes_a), (size_b, bytes_b) in zip(points, points[1:]):
            if size_a <= plot["context"] <= size_b:
                return float(bytes_a + (bytes_b - bytes_a) * (plot["context"] - size_a) / (size_b - size_a))
    return None


# ---- the page


def _kinds(plan: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Hosts with the same plan, together: the plan and the hosts' names."""
    groups: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    # Hosts of one kind share their rows, so the rows' identity tells most of them apart without writing them out.
    for host in plan["hosts"]:
        key = json.dumps([host["verdict"], host["reason"], host["notes"], host["devices"], host["ram"]]) + repr(
            [id(row) for row in host["instances"]]
        )
        groups.setdefault(key, (host, []))[1].append(host["name"])
    order = {verdict: -number for number, verdict in enumerate(_plan.VERDICTS)}
    return sorted(groups.values(), key=lambda kind: order[kind[0]["verdict"]])


def _list(items: Iterable[str], css: str) -> str:
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="plain {css}">{lines}</ul>' if lines else ""


def _numbers(host: Mapping[str, Any]) -> str:
    rows = []
    for row in host["instances"]:
        for device in [*row["devices"], "host"]:
            part = row.get("memory", {}).get(device)
            if part is None:
                continue
            cells = "".join(f'<td class="n">{_e(_plan.gib(part.get(key, 0)))}</td>' for key, _skipped in PARTS)
            name = "RAM" if device == "host" else device
            rows.append(
                f'<tr><th scope="row">{_e(row["name"])}</th><td>{_e(name)}</td>{cells}'
                f'<td class="n"><b>{_e(_plan.gib(part["total"]))}</b></td></tr>'
            )
    if not rows:
        return ""
    heads = "".join(f'<th scope="col" class="n">{_e(label)}</th>' for _skipped, label in PARTS)
    return (
        "<details><summary>The figures</summary><div class=scroll><table><thead><tr><th scope=col>Instance</th>"
        f'<th scope=col>On</th>{heads}<th scope="col" class="n">Total</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table></div></details>"
    )


def _considered(row: Mapping[str, Any]) -> str:
    steps = row.get("considered") or []
    if not steps:
        return ""
    lines = _list((_e(_step(step)) for step in steps), "")
    return f"<details><summary>What was considered for {_e(row['name'])}</summary>{lines}</details>"


def _step(step: Any) -> str:
    if not isinstance(step, Mapping):
        return str(step)
    pair = f"{step.get('cache_type_k', '?')}/{step.get('cache_type_v', '?')}"
    size = step.get("ctx_size")
    reached = f" reaches {context_label(size)}" if isinstance(size, int) else ""
    loss = step.get("loss_percent")
    cost = f" (perplexity +{loss:g} %)" if isinstance(loss, (int, float)) and loss > 0 else ""
    mark = "chosen: " if step.get("chosen") else ""
    return f"{pair}{cost}{reached}: {mark}{step.get('reason', '')}"


def _instance_line(row: Mapping[str, Any]) -> str:
    parts = [f"<b>{_e(row['name'])}</b> {_pill(row['verdict'])}", f"<code>{_e(row['model'])}</code>"]
    if "options" in row:
        context = row["context"]
        auto = set(row.get("auto", ()))
        chosen = " (chosen)" if "ctx_size" in auto else ""
        slots = f", {context['n_parallel']} slots" if context["n_parallel"] > 1 else ""
        parts.append(f"context {context['n_ctx']:,}{chosen}{slots}")
        types = f"{row['options']['cache_type_k']}/{row['options']['cache_type_v']}"
        parts.append(f"K/V {_e(types)}{' (chosen)' if auto & {'cache_type_k', 'cache_type_v'} else ''}")
    parts.append(_e(", ".join(row["devices"]) or "CPU"))
    if row["state"] != "started":
        parts.append(f"state {_e(row['state'])}: holds no memory")
    return f'<p class="wide">{" · ".join(parts)}</p>'


def _card(number: int, host: Mapping[str, Any], names: list[str], plan: Mapping[str, Any]) -> str:
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more like it"
    out = [
        f'<section class="card" id="k{number}"><div class="head"><h3>{_e(title)}</h3>{_pill(host["verdict"])}</div>',
    ]
    if len(names) > 1:
        shown = ", ".join(names)
        out.append(
            f'<p class="names">{_e(shown)}</p>'
            if len(names) <= 12
            else f'<details><summary>All {len(names)} hosts</summary><p class="names">{_e(shown)}</p></details>'
        )
    reasons = [_e(host["reason"])] if host["reason"] else []
    reasons += [
        f"<b>{_e(row['name'])}</b>: {_e(row['reason'])}" for row in host["instances"] if row["verdict"] != _plan.FITS
    ]
    out.append(_list(reasons, "stop"))
    out += [_instance_line(row) for row in host["instances"]]
    places = _places(host)
    out += [f"<figure>{_bar(place)}</figure>" for place in places]
    used = {css for place in places for _skipped, css, *_skipped in place["segments"]}
    legend = "".join(f'<li><i class="{css}"></i>{_e(label)}</li>' for css, label in PARTS if css in used)
    if legend:
        out.append(f'<ul class="legend" aria-label="Colours of the bars">{legend}</ul>')
    warnings = [_e(note) for note in host["notes"]]
    warnings += [f"<b>{_e(row['name'])}</b>: {_e(text)}" for row in host["instances"] for text in row["warnings"]]
    ram = host["ram"]
    if ram is not None and ram["growing_bytes"] + ram["needed_bytes"] > ram["usable_bytes"] >= ram["needed_bytes"]:
        warnings.append(
            f"RAM: prompt caches and checkpoints may grow by {_e(_plan.gib(ram['growing_bytes']))}, beyond what is"
            " there; lower cache_ram_mib"
        )
    out.append(_list(dict.fromkeys(warnings), "warn"))
    out.append(_numbers(host))
    for row in host["instances"]:
        if "plot" in row:
            out.append(_plot(row["name"], plan["plots"][row["plot"]], f"k{number}{row['plot']}"))
        out.append(_considered(row))
    out.append("</section>")
    return "".join(out)


def _hosts_table(plan: Mapping[str, Any], kinds: Sequence[tuple[Mapping[str, Any], list[str]]]) -> str:
    number_of = {name: number for number, (_skipped, names) in enumerate(kinds) for name in names}
    minis: dict[int, str] = {}
    rows = []
    for host in plan["hosts"]:
        number = number_of[host["name"]]
        if number not in minis:
            bars = "".join(
                f'<td>{_e(place["label"])} <span class="soft num">{_share(place)}</span>{_mini(place)}</td>'
                for place in _places(kinds[number][0])
            )
            minis[number] = bars + f"<td>{_pill(host['verdict'])}</td>"
        rows.append(f'<tr><th scope="row"><a href="#k{number}">{_e(host["name"])}</a></th>{minis[number]}</tr>')
    widest = max((len(_places(host)) for host, _skipped in kinds), default=1)
    # Verdicts stand in the last column whatever number of devices a host has.
    padded = []
    for host, row in zip(plan["hosts"], rows):
        missing = widest - len(_places(kinds[number_of[host["name"]]][0]))
        verdict_at = row.rindex("<td><span class=")
        padded.append(row[:verdict_at] + "<td></td>" * missing + row[verdict_at:])
    head = f'<th scope="col">Host</th><th scope="col" colspan="{widest}">Memory, needed of what is there</th>'
    return (
        f'<div class="card scroll"><table><thead><tr>{head}<th scope="col">Verdict</th></tr></thead>'
        f"<tbody>{''.join(padded)}</tbody></table></div>"
    )


def _share(place: Mapping[str, Any]) -> str:
    if not place["room"]:
        return _plan.gib(place["needed"])
    return f"{100 * place['needed'] / place['room']:.0f} %"


def _models_table(plan: Mapping[str, Any]) -> str:
    rows = []
    for model in plan["models"].values():
        size = "?" if model["file_bytes"] is None else _plan.gib(model["file_bytes"])
        worst = [check["message"] for check in model["checks"] if check["level"] != "info"]
        rows.append(
            f'<tr><th scope="row"><code>{_e(model["name"])}</code></th><td>{_e(model["architecture"])}</td>'
            f'<td class="n">{_e(size)}</td><td class="n">{model["tensors"]}</td><td>{_e("; ".join(worst))}</td></tr>'
        )
    if not rows:
        return ""
    return (
        '<h2>Models</h2><div class="card scroll"><table><thead><tr><th scope="col">File</th>'
        '<th scope="col">Architecture</th><th scope="col" class="n">Size</th><th scope="col" class="n">Tensors</th>'
        '<th scope="col">To know</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def page(plan: Mapping[str, Any], title: str = "Memory plan") -> str:
    """The whole page."""
    summary = plan["summary"]
    kinds = _kinds(plan)
    tiles = [
        ("hosts", summary["hosts"], ""),
        ("instances", summary["instances"], ""),
        ("fit", summary["fits"], "ok"),
        ("do not fit", summary["does_not_fit"], "bad" if summary["does_not_fit"] else ""),
        ("refused", summary["refused"], "bad" if summary["refused"] else ""),
        ("not known", summary["unknown"], "odd" if summary["unknown"] else ""),
        ("warnings", summary["warnings"], "odd" if summary["warnings"] else ""),
    ]
    tiles_html = "".join(f'<li class="{css}"><b>{count}</b>{_e(name)}</li>' for name, count, css in tiles)
    basis = "the memory declared in the inventory" if plan.get("offline") else "what the hosts report"
    good = summary["hosts_not_fitting"] == 0
    verdict = (
        "Everything fits."
        if good
        else f"{summary['hosts_not_fitting']} of {summary['hosts']} hosts cannot run as declared."
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{_e(title)}</h1><p>{_e(verdict)} <span class=soft>Predicted from the models' headers and"
        f" {basis}, with the rules of the build of llama.cpp that each host has.</span></p></header>"
        f'<ul class="tiles">{tiles_html}</ul>'
        f"<h2>Hosts</h2>{_hosts_table(plan, kinds)}"
        f"<h2>{'The host' if len(plan['hosts']) == 1 else 'Kinds of hosts'}</h2>"
        + "".join(_card(number, host, names, plan) for number, (host, names) in enumerate(kinds))
        + _models_table(plan)
        + "</main></body></html>\n"
    )
