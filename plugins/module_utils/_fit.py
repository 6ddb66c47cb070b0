# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the context and the cache types that fit the memory of a host.

Private to the collection: may change at any time, not for use from elsewhere.

What a choice costs is asked of C(_memory.memory_budget), some ten to sixty times for one answer. Every search rests on
one rule: more context, fewer layers on the CPU and less lossy types never need less of a GPU's memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _memory
from ansible_collections.llamafleet.turboquant.plugins.module_utils._builds import DEFAULT_BUILD, get_build

STEP = 256  # llama.cpp pads a context to this many tokens (llama-context.cpp:161-195)
MIN_CTX = 8192
MIB = 1024 * 1024

# What llama.cpp's own --fit leaves free on each device (common/fit.cpp, --fit-target 1024): with as much left over,
# it finds nothing to change.
HEADROOM_BYTES = 1024 * MIB

# So large that no device is full: what the program refuses whatever the memory is asked with it. A power of two
# leaves the shares by which layers are split as they are, for those are 32-bit floats of the free bytes.
_AMPLE = 2**20

ADJUSTABLE = ("n_cpu_moe", "n_gpu_layers")


@dataclass(frozen=True)
class Pair:
    """A pair of cache types, and what it is known to cost."""

    type_k: str
    type_v: str
    loss_percent: float
    source: str = ""

    @property
    def name(self) -> str:
        return f"{self.type_k}/{self.type_v}"


_PPL = "TheTom/turboquant_plus, perplexity on M5 Max against q8_0 (6.111)"

# The order of preference: the least lossy first. The loss is the rise of perplexity in percent. Of a mixed pair none
# is published for the same run: that of its V type with itself is an upper bound, since K is kept in q8_0. Pairs that
# keep K in q8_0 stand before those that do not, whatever their figures: K is what breaks (Qwen2.5-7B, Q4_K_M, both
# types turbo4: perplexity 218; q8_0/turbo4: +1.0 %). turbo2 (+6.5 %) is left out: a turbo2 V switches on Boundary V,
# which makes q8_0/turbo2 larger than turbo3/turbo3 (Gemma 4 26B at 262144: 2011 against 1059 MiB). f16/turbo4 is left
# out because q8_0/q8_0 is smaller and less lossy.
LADDER: tuple[Pair, ...] = (
    Pair("f16", "f16", 0.0, "no quantisation"),
    Pair("q8_0", "q8_0", 0.0, f"{_PPL}: the reference"),
    Pair("q8_0", "turbo4", 0.23, f"{_PPL}: turbo4 6.125, an upper bound"),
    Pair("q8_0", "turbo3", 1.06, f"{_PPL}: turbo3 6.176, an upper bound"),
    Pair("turbo4", "turbo4", 0.23, f"{_PPL}: turbo4 6.125"),
    Pair("q4_0", "q4_0", 0.52, f"{_PPL}: q4_0 6.142"),
    Pair("turbo3", "turbo3", 1.06, f"{_PPL}: turbo3 6.176"),
)

# Not in the ladder, but worth naming when nothing in it fits.
_LAST_RESORT = Pair("turbo2", "turbo2", 6.5, f"{_PPL}: turbo2 +6.5 %")


class FitError(ValueError):
    """Nothing fits. The words say by how much, and what would."""


@dataclass(frozen=True)
class Level:
    """What is moved to the CPU; only when the caller asked for it."""

    n_cpu_moe: int | None = None
    n_gpu_layers: int | None = None

    def options(self) -> dict[str, int]:
        named = {"n_cpu_moe": self.n_cpu_moe, "n_gpu_layers": self.n_gpu_layers}
        return {name: value for name, value in named.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.options().items()) or "nothing moved to the CPU"


def _mib(size: int) -> str:
    return f"{size} bytes ({size / MIB:.0f} MiB)"


def _whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} is a whole number of {low} or more, got {value!r}")
    return int(value)


def parse_ladder(ladder: Any, build: str) -> tuple[Pair, ...]:
    """Return the pairs to try, the preferred first; None is the default, less what the build does not know."""
    known = get_build(build).cache_types
    if ladder is None:
        return tuple(pair for pair in LADDER if pair.type_k in known and pair.type_v in known)
    if isinstance(ladder, (str, Mapping)) or not isinstance(ladder, Iterable):
        raise ValueError(f"ladder is a list of pairs such as q8_0/turbo4, got {ladder!r:.80}")
    losses = {pair.name: pair for pair in (*LADDER, _LAST_RESORT)}
    pairs = []
    for entry in ladder:
        parts = str(entry).split("/") if isinstance(entry, str) else list(entry) if _is_pair(entry) else []
        if len(parts) != 2:
            raise ValueError(f"ladder holds {entry!r:.80}: a pair of cache types such as q8_0/turbo4 is wanted")
        for name in parts:
            if name not in known:
                raise ValueError(f"ladder holds {entry!r:.80}: build {build} knows the types {', '.join(known)}")
        name = "/".join(str(part) for part in parts)
        pairs.append(losses.get(name, Pair(str(parts[0]), str(parts[1]), float("nan"), "given by the caller")))
    if not pairs:
        raise ValueError("ladder is empty: give at least one pair of cache types such as q8_0/turbo4")
    return tuple(pairs)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, Sequence) and len(entry) == 2 and all(isinstance(name, str) for name in entry)


class _Search:
    """One question: a model, a host and the options that are fixed."""

    def __init__(
        self,
        model: Any,
        devices: Iterable[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
        build: str,
        env: Mapping[str, Any] | None,
        headroom: Any,
        ram_bytes: int | None,
        fa_all_quants: bool | None,
    ) -> None:
        self.model = _memory.load_model(model)
        self.options = dict(options)
        self.build = build
        self.env = env
        self.fa_all_quants = fa_all_quants
        self.devices = (
            [dict(device) for device in devices or ()] if not isinstance(devices, (str, Mapping)) else devices
        )
        gpus = _memory.parse_devices(self.devices)
        self.devices = [dict(device, name=gpu.name) for device, gpu in zip(self.devices, gpus)]
        self.ample = [
            dict(device, free_bytes=gpu.free * _AMPLE, total_bytes=gpu.total * _AMPLE)
            for device, gpu in zip(self.devices, gpus)
        ]
        self.limits = {gpu.name: gpu.free for gpu in gpus}
        if ram_bytes is not None:
            self.limits[_memory.HOST] = _whole("ram_bytes", ram_bytes, 1)
        self.headroom = self._headroom(headroom)
        self.calls = 0
        self._known: dict[tuple[Pair, Level, int], dict[str, Any]] = {}

    def _headroom(self, headroom: Any) -> dict[str, int]:
        if isinstance(headroom, Mapping):
            unknown = sorted(set(headroom) - set(self.limits))
            if unknown:
                raise ValueError(
                    f"headroom_bytes names {', '.join(unknown)}: there are {', '.join(self.limits) or 'no devices'}"
                    f"{'' if _memory.HOST in self.limits else ', and the host only with ram_bytes'}"
                )
            given = {str(name): _whole(f"headroom_bytes of {name}", value, 0) for name, value in headroom.items()}
            return {name: given.get(name, HEADROOM_BYTES) for name in self.limits}
        every = _whole("headroom_bytes", headroom, 0)
        return dict.fromkeys(self.limits, every)

    def doubted(self, pairs: Iterable[Pair]) -> dict[Pair, str]:
        """Return the pairs of which wrong answers were reported on one of the devices, with what was said."""
        backends = [gpu.backend for gpu in _memory.parse_devices(self.devices)]
        found = {
            pair: _memory.reported_wrong(get_build(self.build), backends, pair.type_k, pair.type_v) for pair in pairs
        }
        return {pair: f"{'; '.join(texts)}: to have it all the same, name it" for pair, texts in found.items() if texts}

    def with_options(self, **options: Any) -> _Search:
        """Return the same question with other options."""
        other = copy.copy(self)
        other.options = {**self.options, **options}
        other._known = {}
        return other

    def chosen(self, pair: Pair, level: Level, ctx: int) -> dict[str, Any]:
        """Return llama-server's options of a choice."""
        return {
            **self.options,
            "ctx_size": ctx,
            "cache_type_k": pair.type_k,
            "cache_type_v": pair.type_v,
            # The choice is made: the program must not make another one at its start.
            "fit": False,
            **level.options(),
        }

    def budget(self, pair: Pair, level: Level, ctx: int) -> dict[str, Any]:
        """Return the budget of a choice on devices that are never full."""
        key = (pair, level, ctx)
        if key not in self._known:
            self.calls += 1
            self._known[key] = _memory.memory_budget(
                self.model,
                self.ample,
                self.chosen(pair, level, ctx),
                self.build,
                self.env,
                fa_all_quants=self.fa_all_quants,
            )
        return self._known[key]

    def real_budget(self, pair: Pair, level: Level, ctx: int) -> dict[str, Any]:
        self.calls += 1
        return _memory.memory_budget(
            self.model,
            self.devices,
            self.chosen(pair, level, ctx),
            self.build,
            self.env,
            fa_all_quants=self.fa_all_quants,
        )

    def missing(self, pair: Pair, level: Level, ctx: int, names: Iterable[str] | None = None) -> dict[str, int]:
        """Return by how many bytes each device misses its headroom; empty when all keep it."""
        parts = self.budget(pair, level, ctx)["devices"]
        return {
            name: parts[name]["total"] + self.headroom[name] - self.limits[name]
            for name in (self.limits if names is None else names)
            if parts[name]["total"] + self.headroom[name] > self.limits[name]
        }

    def refusal(self, pair: Pair, level: Level, ctx: int) -> str:
        """Say why the program does not run a choice well, whatever the memory; empty when it does."""
        budget = self.budget(pair, level, ctx)
        return "" if budget["accepted"] else budget["reason"] or "the program refuses it"

    def fits(self, pair: Pair, level: Level, ctx: int) -> bool:
        return not self.missing(pair, level, ctx) and not self.refusal(pair, level, ctx)

    def gpu_fits(self, pair: Pair, level: Level, ctx: int) -> bool:
        gpus = [name for name in self.limits if name != _memory.HOST]
        return not self.missing(pair, level, ctx, gpus) and not self.refusal(pair, level, ctx)

    def largest(self, pair: Pair, level: Level, low: int, high: int) -> int | None:
        """Return the largest context in steps of 256 from low to high that fits; None when low does not."""
        if self.fits(pair, level, high):
            return high
        if low >= high or not self.fits(pair, level, low):
            return None
        good, bad = low, high
        rounds = 0
        while bad - good > STEP:
            # Two guesses, then a halving: memory grows almost evenly, and where it does not, little is lost.
            middle = self._between(pair, level, good, bad, guess=rounds % 3 < 2)
            rounds += 1
            if self.fits(pair, level, middle):
                good = middle
            else:
                bad = middle
        return good

    def _between(self, pair: Pair, level: Level, good: int, bad: int, guess: bool) -> int:
        """Return a context between the two: the middle, or where a device would be full if memory grew evenly."""
        middle = (good + bad) // 2
        if guess:
            below, above = self.budget(pair, level, good)["devices"], self.budget(pair, level, bad)["devices"]
            for name, limit in self.limits.items():
                need, more = below[name]["total"], above[name]["total"]
                room = limit - self.headroom[name]
                if more > room >= need:
                    middle = min(middle if more <= need else bad, good + (bad - good) * (room - need) // (more - need))
        return min(max(middle // STEP * STEP, good + STEP), bad - STEP)


def _levels(search: _Search, adjust: Sequence[str]) -> list[Level]:
    """Return what may be moved to the CPU, the least first."""
    h = search.model.hparams
    levels = [Level()]
    moe = 0
    if "n_cpu_moe" in adjust and any("_exps." in name or "_chexps." in name for name in search.model.names):
        moe = h.n_layer
        levels += [Level(n_cpu_moe=count) for count in range(1, moe + 1)]
    if "n_gpu_layers" in adjust:
        levels += [Level(moe or None, n_gpu_layers=count) for count in range(h.n_layer, -1, -1)]
    return levels


def _least_level(search: _Search, levels: Sequence[Level], pair: Pair, ctx: int) -> int | None:
    """Return the first level at which every GPU has room. Moving more gives a GPU more room, past the first level.

    From the first to the second level a GPU can need more: the weights that the CPU holds are copied for large batches.
    """
    if search.gpu_fits(pair, levels[0], ctx):
        return 0
    if len(levels) == 1 or not search.gpu_fits(pair, levels[-1], ctx):
        return None
    bad, good = 0, len(levels) - 1
    while good - bad > 1:
        middle = (good + bad) // 2
        if search.gpu_fits(pair, levels[middle], ctx):
            good = middle
        else:
            bad = middle
    return good


def _why_left(search: _Search, pair: Pair, level: Level, ctx: int) -> str:
    refusal = search.refusal(pair, level, ctx)
    if refusal:
        return refusal
    missing = search.missing(pair, level, ctx)
    return "; ".join(f"{name} lacks {_mib(size)} at {ctx}" for name, size in missing.items())


def _fixed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is left to the choice: options that are absent, none or `auto`."""
    return {str(name): value for name, value in options.items() if value is not None and str(value) != "auto"}


def _pairs(options: Mapping[str, Any], ladder: Any, build: str) -> tuple[Pair, ...]:
    """Return the pairs to try that agree with the cache types that are fixed."""
    type_k, type_v = options.get("cache_type_k"), options.get("cache_type_v")
    if type_k is not None and type_v is not None:
        return parse_ladder([[str(type_k), str(type_v)]], build)
    pairs = parse_ladder(ladder, build)
    found = tuple(pair for pair in pairs if type_k in (None, pair.type_k) and type_v in (None, pair.type_v))
    if not found:
        side, name = ("K", type_k) if type_k is not None else ("V", type_v)
        raise ValueError(
            f"no pair of the ladder ({', '.join(pair.name for pair in pairs)}) has {name} for {side}: "
            "fix both types, or give a ladder"
        )
    return found


def _range(search: _Search, min_ctx: Any, max_ctx: Any, warnings: list[str]) -> tuple[int, int]:
    """Return the smallest and the largest context to consider, in steps of 256."""
    trained = search.model.hparams.n_ctx_train
    low = _whole("min_ctx", min_ctx, 1)
    if max_ctx is None:
        high = max(trained // STEP * STEP, STEP)
        if low > high:
            warnings.append(f"the model was trained for {trained} tokens, less than the {low} of min_ctx: that is all")
            low = high
    else:
        high = max(_whole("max_ctx", max_ctx, 1) // STEP * STEP, STEP)
        if low > high:
            raise ValueError(f"min_ctx {low} is above max_ctx {max_ctx}")
        if high > trained:
            warnings.append(
                f"a context of up to {high} is above the {trained} that the model was trained for: it needs RoPE "
                "scaling, and answers get worse past the trained length"
            )
    return -(-low // STEP) * STEP, high


def fit_context(
    model: Any,
    devices: Iterable[Mapping[str, Any]] | None = (),
    options: Mapping[str, Any] | None = None,
    build: str = DEFAULT_BUILD,
    env: Mapping[str, Any] | None = None,
    ladder: Any = None,
    min_ctx: int = MIN_CTX,
    max_ctx: int | None = None,
    headroom_bytes: Any = HEADROOM_BYTES,
    ram_bytes: int | None = None,
    adjust: Sequence[str] = (),
    fa_all_quants: bool | None = None,
) -> dict[str, Any]:
    """Return the options that give the wanted context with the least loss, or raise FitError when none fit.

    The first pair of the ladder that reaches max_ctx is taken. When none does, it is the pair that gets furthest, and
    of two that get equally far the earlier one. Layers move to the CPU only when `adjust` allows it, and then as few
    as let some pair of the ladder reach max_ctx.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"options is a dictionary of llama-server's options, got {options!r:.80}")
    if isinstance(adjust, str) or not isinstance(adjust, Sequence) or any(name not in ADJUSTABLE for name in adjust):
        raise ValueError(f"adjust is a list of {' and '.join(ADJUSTABLE)}, got {adjust!r:.80}")
    fixed = _fixed(options or {})
    for name in adjust:
        if name in fixed:
            raise ValueError(f"{name} is fixed to {fixed[name]!r} and named in adjust too: leave out one of them")
    pairs = _pairs(fixed, ladder, build)
    named = ladder is not None or "cache_type_k" in fixed or "cache_type_v" in fixed
    for name in ("cache_type_k", "cache_type_v"):
        fixed.pop(name, None)
    fixed_ctx = fixed.pop("ctx_size", 0)
    search = _Search(model, devices, fixed, build, env, headroom_bytes, ram_bytes, fa_all_quants)
    warnings: list[str] = []
    if fixed_ctx:
        low = high = _whole("option ctx_size", fixed_ctx, 1)
    else:
        low, high = _range(search, min_ctx, max_ctx, warnings)
    if not search.limits:
        warnings.append("no device and no ram_bytes were given, so nothing limits the choice")
    levels = _levels(search, adjust)

    considered: list[dict[str, Any]] = []
    runnable = []
    # a pair of which wrong answers were reported is not chosen for anybody who named neither it nor one of its types
    doubted = {} if named else search.doubted(pairs)
    for pair in pairs:
        refusal = search.refusal(pair, levels[0], low) or doubted.get(pair, "")
        if refusal:
            considered.append(_step(pair, levels[0], None, False, refusal))
        else:
            runnable.append(pair)
    if not runnable:
        raise FitError(_nothing_runs(search, pairs, low))

    level = levels[_level_for(search, levels, runnable, low, high)]
    best: tuple[int, Pair] | None = None
    tried: list[tuple[Pair, int | None]] = []
    for pair in runnable:
        reached = search.largest(pair, level, low, high)
        tried.append((pair, reached))
        if reached is not None and (best is None or reached > best[0]):
            best = (reached, pair)
        if reached == high:
            break
    if best is None:
        raise FitError(_nothing_fits(search, runnable, levels, low, adjust, considered))

    ctx, chosen = best
    for pair, reached in tried:
        if pair is chosen:
            considered.append(_step(pair, level, reached, True, _why_chosen(search, pair, level, ctx, high)))
        elif reached is None:
            considered.append(_step(pair, level, None, False, _why_left(search, pair, level, low)))
        else:
            considered.append(
                _step(pair, level, reached, False, _why_left(search, pair, level, min(reached + STEP, high)))
            )
    considered += [
        _step(pair, level, None, False, f"not needed: {chosen.name} comes before it and reaches {ctx}")
        for pair in runnable[len(tried) :]
    ]
    order = {(pair.type_k, pair.type_v): index for index, pair in enumerate(pairs)}
    considered.sort(key=lambda step: order[step["cache_type_k"], step["cache_type_v"]])

    budget = search.real_budget(chosen, level, ctx)
    return {
        "options": search.chosen(chosen, level, ctx),
        "budget": budget,
        "considered": considered,
        "headroom": {
            name: {
                "limit": limit,
                "used": budget["devices"][name]["total"],
                "left": limit - budget["devices"][name]["total"],
                "wanted": search.headroom[name],
            }
            for name, limit in search.limits.items()
        },
        "warnings": [*warnings, *budget["warnings"]],
        "calls": search.calls,
    }


def _step(pair: Pair, level: Level, reached: int | None, chosen: bool, reason: str) -> dict[str, Any]:
    return {
        "cache_type_k": pair.type_k,
        "cache_type_v": pair.type_v,
        "loss_percent": None if pair.loss_percent != pair.loss_percent else pair.loss_percent,
        "source": pair.source,
        **level.options(),
        "ctx_size": reached,
        "chosen": chosen,
        "reason": reason,
    }


def _why_chosen(search: _Search, pair: Pair, level: Level, ctx: int, high: int) -> str:
    moved = f" with {level}" if level.options() else ""
    if ctx == high:
        return f"the first pair that reaches {high}{moved}"
    return f"reaches furthest{moved}: {_why_left(search, pair, level, ctx + STEP)}"


def _level_for(search: _Search, levels: Sequence[Level], pairs: Sequence[Pair], low: int, high: int) -> int:
    """Return the least that must be moved to the CPU so that some pair reaches the wanted context.

    When no pair does, whatever is moved, it is the least that gives the largest context there is.
    """
    if len(levels) == 1:
        return 0
    best: int | None = None
    for pair in pairs:
        if best == 0:
            break
        if best is not None and not search.gpu_fits(pair, levels[best - 1], high):
            continue  # moving less than was found already does not do for this pair
        level = _least_level(search, levels, pair, high)
        if level is not None and search.fits(pair, levels[level], high):
            best = level if best is None else min(best, level)
    if best is not None:
        return best
    # The wanted context is out of reach. What the host's memory or the last level leaves is a matter of a search over
    # both, so take the level that gets furthest, and of those the least.
    reach = {index: search.largest(pair, levels[index], low, high) or 0 for index in _probes(len(levels))}
    furthest = max(reach.values())
    return min(index for index, ctx in reach.items() if ctx == furthest)


def _probes(count: int) -> list[int]:
    """Return the levels to look at when the wanted context is out of reach: all of a few, a dozen of many."""
    if count <= 12:
        return list(range(count))
    return sorted({index * (count - 1) // 11 for index in range(12)} | {1})


def _nothing_runs(search: _Search, pairs: Sequence[Pair], ctx: int) -> str:
    """Say why the program runs none of the pairs, each reason once."""
    reasons: dict[str, list[str]] = {}
    for pair in pairs:
        reason = search.refusal(pair, Level(), ctx) or search.doubted([pair])[pair]
        reasons.setdefault(reason, []).append(pair.name)
    text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    others = [
        pair.name
        for pair in parse_ladder(None, search.build)
        if pair not in pairs and not search.refusal(pair, Level(), ctx)
    ]
    hint = f". What would run: the pairs {', '.join(others)}" if others else ""
    return f"none of the cache types can be used, whatever the memory: {text}{hint}"


def _nothing_fits(
    search: _Search,
    pairs: Sequence[Pair],
    levels: Sequence[Level],
    low: int,
    adjust: Sequence[str],
    considered: Sequence[Mapping[str, Any]],
) -> str:
    """Say by how much the nearest choice misses, and what would make it fit."""
    level = levels[-1]
    pair = min(pairs, key=lambda candidate: sum(search.missing(candidate, level, low).values()))
    missing = search.missing(pair, level, low)
    at = f" ({level})" if level.options() else ""
    text = [
        f"nothing fits: the smallest choice, {pair.name} at a context of {low}{at}, misses "
        + ", ".join(f"{name} by {_mib(size)}" for name, size in missing.items())
    ]
    if not missing:  # a refusal that depends on the size, such as what Vulkan can bind
        text = [f"nothing fits: {pair.name} at a context of {low}{at} is refused: {search.refusal(pair, level, low)}"]
    works = []
    smaller = search.largest(pair, level, STEP, low) if low > STEP else None
    if smaller is not None:
        works.append(f"a context of {smaller} with {pair.name} (min_ctx)")
    known = get_build(search.build).cache_types
    for other in (*LADDER, _LAST_RESORT):
        tried = other in pairs or any(
            (step["cache_type_k"], step["cache_type_v"]) == (other.type_k, other.type_v) for step in considered
        )
        doubt = search.doubted([other]).get(other, "")
        if (doubt or not tried) and other.type_k in known and other.type_v in known and search.fits(other, level, low):
            works.append(
                f"the pair {other.name} (ladder), {doubt or f'which costs {other.loss_percent} % of perplexity'}"
            )
            break
    for name in ADJUSTABLE:
        if name in adjust or name in search.options or not search.devices:
            continue
        more = _levels(search, [name])
        index = _least_level(search, more, pair, low)
        if index is not None and search.fits(pair, more[index], low):
            works.append(f"{more[index]} (adjust: [{name}])")
            break
    works += _other_ways(search, pair, level, low, missing)
    if works:
        text.append("what would make it fit: " + "; ".join(works))
    return ". ".join(text)


def _other_ways(search: _Search, pair: Pair, level: Level, low: int, missing: Mapping[str, int]) -> list[str]:
    works = []
    parts = search.budget(pair, level, low)["devices"]
    context = search.budget(pair, level, low)["context"]
    if context["n_parallel"] > 1 and search.with_options(parallel=1).fits(pair, level, low):
        works.append(f"one slot in place of {context['n_parallel']} (parallel: 1)")
    if _memory.HOST in missing and search.with_options(cache_ram=0).fits(pair, level, low):
        works.append("no prompt cache (cache_ram: 0), which otherwise may grow to 8 GiB")
    for name, size in missing.items():
        weights = parts[name]["weights"]
        if weights > size:
            percent = 100 - size * 100 / weights
            works.append(
                f"a smaller quantisation: weights of at most {_mib(weights - size)} on {name}, {percent:.0f} % of what "
                "they are"
            )
        needs = search.limits[name] + size
        works.append(f"{name} with {_mib(needs)} free, where {_mib(search.limits[name])} are")
    return works
