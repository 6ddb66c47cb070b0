# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate: what an instance has to show before its host counts as done.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import re
import time
from typing import Any, Callable

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_log, _server_probe, _unit

Run = Callable[[list[str]], "tuple[int, str, str]"]


def show(run: Run, unit: str) -> dict[str, str]:
    """The unit's properties that matter here."""
    names = "ActiveState,SubState,Result,InvocationID,MainPID,NRestarts,UnitFileState,MemoryCurrent"
    _rc, out, _err = run(["systemctl", "show", f"--property={names}", unit])
    return dict(line.partition("=")[::2] for line in out.splitlines())


def journal(run: Run, unit: str, *match: str) -> str:
    """The unit's log as text; filtered by journal fields or options."""
    # -o cat: the message alone, as the program wrote it.
    _rc, out, _err = run(["journalctl", "--no-pager", "--output=cat", f"--unit={unit}", "--lines=4000", *match])
    return out


def journal_of(run: Run, invocation: str) -> str:
    """The log of one start of a unit, and what systemd said of it; nothing of an earlier or a later start."""
    match = (f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}")
    _rc, out, _err = run(["journalctl", "--no-pager", "--output=cat", "--lines=4000", *match])
    return out


def client_of(item: dict[str, Any], key: str | None) -> _server_probe.Client:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(item["host"], item["host"])
    path = host if host.endswith(".sock") else None
    return _server_probe.Client(host, item["port"], path, item["has_tls"], key)


# A busy moment is not a slow release: so often it is measured before it counts as one.
MEASURE = 3


def fast_enough(
    measure: Callable[[], dict[str, Any]], item: dict[str, Any], rate_before: float | None
) -> tuple[dict[str, Any], str]:
    """Decode, and again where that was too slow; return the fastest answer, and what is wrong with it.

    rate_before: tokens per second of the release before with the same settings, where they are known.
    """
    least, asked = float(item.get("min_tps") or 0), "min_tps asks for"
    percent = float(item.get("min_tps_percent") or 0)
    if percent and rate_before:
        least = rate_before * percent / 100
        asked = f"are {percent:g}% (min_tps) of the {rate_before:g} of the release before"
    best = measure()
    for _more in range(MEASURE - 1):
        if best["tokens_per_second"] >= least:
            break
        best = max(best, measure(), key=lambda answer: float(answer["tokens_per_second"]))
    rate = best["tokens_per_second"]
    return best, "" if rate >= least else f"decodes {rate:g} tokens/s, below the {least:g} that {asked}"


def examine(
    run: Run,
    item: dict[str, Any],
    key: str | None,
    predicted: dict[str, Any] | None,
    measured_before: dict[str, Any] | None = None,
    timeout: float = 120,
    tolerance: float = 0.05,
    rate_before: float | None = None,
) -> dict[str, Any]:
    """Put one running instance to the test; problems is empty when it passed.

    measured_before: what the log of this same configuration said at an earlier gate, for a log that the journal no
    longer has. A server is never measured by the figures of another configuration. rate_before: see fast_enough.
    """
    unit = _unit.unit_name(item["name"])
    started = time.monotonic()
    problems: list[str] = []
    result: dict[str, Any] = {
        "name": item["name"], "tokens_per_second": None, "graph_splits": None, "tokens": 0, "answer": "",
        "measured": None, "figures": {}, "active": False,
    }  # fmt: skip
    state = show(run, unit)
    result["active"] = state.get("ActiveState") == "active"
    if not result["active"]:
        problems.append(
            f"{unit} is {state.get('ActiveState', 'unknown')} ({state.get('SubState')}, result {state.get('Result')})"
        )
        result["problems"] = problems
        return result
    client = client_of(item, key)
    if item["has_keys"]:
        try:
            status, _text = client.request(
                "POST", "/v1/chat/completions", {"messages": []}, timeout=10, key="wrong-key"
            )
            if status != 401:
                problems.append(
                    f"a request with a wrong key is answered {status} instead of 401: the keys are not in force"
                )
        except _server_probe.ProbeError as exc:
            problems.append(str(exc))
    if not problems:
        try:
            answer, slow = fast_enough(lambda: _server_probe.decode(client, timeout=timeout), item, rate_before)
            result.update(
                tokens=answer["tokens"], tokens_per_second=answer["tokens_per_second"], answer=answer["text"][:200]
            )
            problems += [slow] if slow else []
        except _server_probe.ProbeError as exc:
            problems.append(f"no token decoded: {exc}")
    measured = _server_log.parse_log(journal(run, unit, f"_SYSTEMD_INVOCATION_ID={state.get('InvocationID', '')}"))
    if not measured["complete"] and measured_before:
        measured = measured_before
    result["measured"] = measured
    result["graph_splits"] = measured["graph_splits"]
    wrong, figures = _server_log.compare(measured, predicted, tolerance)
    problems += wrong
    result["figures"] = figures
    if item["backend"] != "cpu":
        everything = item["n_gpu_layers"] == 999
        if measured["complete"]:
            problems += _server_log.on_gpu(measured, item["max_graph_splits"], everything)
        elif not wrong:
            # Without a plan nothing else asks for these lines, and a server on the CPU would pass.
            problems.append(
                "the server's log shows no cache and compute buffers, so that it works on the GPU is not seen; "
                "a build that prints them otherwise is not known here"
            )
    result["problems"] = problems
    result["seconds"] = round(time.monotonic() - started, 2)
    return result


def exposure(run: Run, unit: str) -> float | None:
    """The score of systemd-analyze security, 0 (safe) to 10; None when it cannot be had."""
    rc, out, _err = run(["systemd-analyze", "security", "--no-pager", unit])
    if rc != 0:
        return None
    for line in reversed(out.splitlines()):
        if "exposure level" in line.lower():
            match = re.search(r"exposure level for .*:\s*([0-9.]+)", line)
            return None if match is None else float(match[1])
    return None
