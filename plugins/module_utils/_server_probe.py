# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talk to a llama-server: wait until it is ready, drain it, watch it, decode on it.

The gate imports this file, and it is also installed on the host as it is, where the units run it; so it needs nothing
but the standard library and takes no secret on its command line.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

PROMPT = "Name one colour."
WATCH_STATE = Path("/var/lib/llamafleet/watchdog")
# Seconds in which a busy server has to get on.
ADVANCE_PAUSE = 5.0


def say(text: str, stream: TextIO | None = None) -> None:
    """A line for the journal; not print, for the sanity tests take this file for a module."""
    (stream or sys.stdout).write(f"{text}\n")


class ProbeError(Exception):
    """The server did not do what was asked; the text says what it did."""


class Unreachable(ProbeError):
    """No HTTP answer at all: nothing listens, the connection broke, or the time was over."""


class Slow(Unreachable):
    """No answer within the time. A busy server has none until its batch is done, so this alone tells nothing."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Client:
    """One server: its address and, where it has one, a key."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        path: str | None = None,
        tls: bool = False,
        key: str | None = None,
    ) -> None:
        self.host, self.port, self.path, self.tls, self.key = host, port, path, tls, key

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self.path:
            return _UnixConnection(self.path, timeout)
        if self.tls:
            # The question is whether this process answers, not who it is: the certificate names other names than
            # the loopback address, and nothing secret but the key crosses the machine's own interface.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout: float = 3, key: str | None = None
    ) -> tuple[int, str]:
        """Return the status and the text of the answer. The whole exchange ends within about the time given."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        secret = self.key if key is None else key
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        connection = self._connection(timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read(1 << 20).decode("utf-8", "replace")
        except (TimeoutError, socket.timeout) as exc:  # two classes before Python 3.10
            raise Slow(f"{method} {path}: {str(exc) or type(exc).__name__}") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise Unreachable(f"{method} {path}: {str(exc) or type(exc).__name__}") from exc
        finally:
            connection.close()


def _error_text(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:200]


def decode(client: Client, tokens: int = 16, timeout: float = 120) -> dict[str, Any]:
    """Let the model decode; return the number of tokens, their rate and the text. Anything less is a ProbeError."""
    chat = {
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
        "cache_prompt": False,
    }
    status, text = client.request("POST", "/v1/chat/completions", chat, timeout)
    path = "/v1/chat/completions"
    if status in (400, 404, 500, 501):
        # Base models may have a chat template that refuses; the plain endpoint needs none.
        path = "/completion"
        plain = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0, "cache_prompt": False}
        status, text = client.request("POST", path, plain, timeout)
    if status != 200:
        raise ProbeError(f"POST {path} answered {status}: {_error_text(text)}")
    try:
        answer = json.loads(text)
        timings = answer.get("timings") or {}
        if path == "/completion":
            count, words = int(answer["tokens_predicted"]), str(answer["content"])
        else:
            message = answer["choices"][0]["message"]
            count = int(answer["usage"]["completion_tokens"])
            words = str(message.get("content") or "") + str(message.get("reasoning_content") or "")
        rate = float(timings.get("predicted_per_second") or 0)
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        raise ProbeError(
            f"POST {path} answered 200, but not as llama-server does: {' '.join(text.split())[:200]}"
        ) from exc
    if count < 1:
        raise ProbeError(f"POST {path} answered 200 without having decoded a token")
    return {"tokens": count, "tokens_per_second": round(rate, 2), "text": words, "endpoint": path}


def metrics(client: Client, timeout: float = 3) -> dict[str, float]:
    """The figures of /metrics by name, without their prefix."""
    status, text = client.request("GET", "/metrics", timeout=timeout)
    if status != 200:
        raise ProbeError(f"GET /metrics answered {status}: {_error_text(text)}")
    figures: dict[str, float] = {}
    for line in text.splitlines():
        name, separator, value = line.strip().rpartition(" ")
        if separator and not line.startswith("#"):
            try:
                figures[name.partition(":")[2] or name] = float(value)
            except ValueError:
                continue
    return figures


def busy(client: Client, timeout: float = 3) -> int:
    """How many requests are being worked on or wait."""
    figures = metrics(client, timeout)
    return int(figures.get("requests_processing", 0) + figures.get("requests_deferred", 0))


# -- what the units call ----------------------------------------------------------------------------------------------


def keys(name: str) -> int:
    """Refuse a start without a key: with an empty file of keys llama-server lets everybody in."""
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere")) / "api-keys"
    try:
        if path.read_text(encoding="utf-8").strip():
            return 0
        said = "is empty"
    except (OSError, ValueError) as exc:
        said = f"cannot be read ({exc})"
    say(
        f"not started: the file of API keys {said}, and llama-server would let everybody in; run the playbook again, "
        f"which writes /etc/llamafleet/instances/{name}/api-keys"
    )
    return 1


def ready(client: Client, timeout: float, main_pid: int | None = None) -> int:
    """Wait until the model is loaded. A process that ends meanwhile is not waited for."""
    end = time.monotonic() + timeout
    said = "it never answered"
    while time.monotonic() < end:
        if main_pid is not None:
            try:
                os.kill(main_pid, 0)
            except ProcessLookupError:
                say(f"llama-server (process {main_pid}) ended while it was loading")
                return 1
            except PermissionError:
                pass
        try:
            status, text = client.request("GET", "/health", timeout=2)
            if status == 200:
                return 0
            said = f"the last answer was {status}: {_error_text(text)}"
        except Unreachable as exc:
            said = str(exc)
        time.sleep(0.2)
    say(f"llama-server was not ready within {timeout:g} s: {said}")
    return 1


def drain(client: Client, timeout: float) -> int:
    """Wait until no request is being worked on or waits, for a bounded time. Always lets the stop go on."""
    end = time.monotonic() + timeout
    left = "whatever it works on is"
    failures = 0
    while True:
        try:
            count = busy(client)
            failures = 0
            if count == 0:
                return 0
            left = f"{count} requests are"
        except Slow:
            # It answers between two batches of a prompt, which a large model may take half a minute for.
            failures = 0
        except Unreachable as exc:
            # A server that is gone has nothing to drain; one that is only slow is asked again.
            failures += 1
            if failures >= 3:
                say(f"not drained, the server does not answer: {exc}")
                return 0
        except ProbeError as exc:
            say(f"not drained: {exc}")
            return 0
        if time.monotonic() >= end:
            say(f"drained for {timeout:g} s, {left} cut off")
            return 0
        time.sleep(0.25)


def end(pid: int, patience: float = 5) -> None:
    """End the server, at once after the drain and in a bounded time.

    A request that comes between the last look and SIGTERM is never answered, and llama-server does not end until its
    client has hung up. Killed, it loses nothing, and the client can ask again.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], patience)[0]:
                return
            say(f"llama-server (process {pid}) has not ended {patience:g} s after {number.name}")
    finally:
        os.close(process)


def systemctl(*words: str) -> str:
    process = subprocess.run(["systemctl", *words], stdout=subprocess.PIPE, text=True, check=False)
    return process.stdout.strip()


def advancing(client: Client, pause: float = ADVANCE_PAUSE, timeout: float = 10) -> bool:
    """True when the server decodes, though it has no time for the probe: that is a busy one, not a wedged one."""
    try:
        before = metrics(client, timeout)
        time.sleep(pause)
        after = metrics(client, timeout)
    except ProbeError:
        return False
    names = ("n_decode_total", "tokens_predicted_total", "prompt_tokens_total")
    return any(after.get(name, 0) > before.get(name, 0) for name in names)


def judge(state: dict[str, Any], alive: bool, now: float, failures: int, cooldown: float) -> bool:
    """Count the outcome of a probe in state; True when the server is to be restarted now."""
    if alive:
        state["failures"] = 0
        return False
    state["failures"] = int(state.get("failures", 0)) + 1
    if state["failures"] < failures or now - float(state.get("last_restart", 0)) < cooldown:
        return False
    state["failures"] = 0
    state["last_restart"] = now
    state["restarts"] = int(state.get("restarts", 0)) + 1
    return True


def textfile(name: str, state: dict[str, Any]) -> str:
    """The watchdog's figures in the format of node_exporter's textfile collector."""
    figures = (
        ("llamafleet_watchdog_restarts_total", "counter", "Restarts by the watchdog.", state.get("restarts")),
        ("llamafleet_watchdog_failures", "gauge", "Failed probes in a row.", state.get("failures")),
        (
            "llamafleet_watchdog_last_ok_timestamp_seconds",
            "gauge",
            "When a token was last decoded.",
            state.get("last_ok"),
        ),
    )
    lines = []
    for family, kind, text, value in figures:
        if value is not None:
            lines += [f"# HELP {family} {text}", f"# TYPE {family} {kind}", f'{family}{{name="{name}"}} {value:.15g}']
    return "".join(f"{line}\n" for line in lines)


def replace(path: Path, text: str) -> None:
    """Write whole or not at all. What reads *.prom does not see the temporary name."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)


def watch(client: Client, options: argparse.Namespace) -> int:
    """One look of the watchdog. Restarts the unit after several failed probes in a row."""
    shown = systemctl("show", "--property=ActiveState,ActiveEnterTimestampMonotonic", options.unit)
    values = dict(line.partition("=")[::2] for line in shown.splitlines())
    since = int(values.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    if values.get("ActiveState") != "active" or time.clock_gettime(time.CLOCK_MONOTONIC) - since < options.grace:
        return 0
    path = WATCH_STATE / f"{options.name}.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    alive, why = True, ""
    try:
        decode(client, 1, options.timeout)
    except ProbeError as exc:
        why = str(exc)
        # For as long as a token may take: with a long prompt it answers only between two batches.
        alive = advancing(client, ADVANCE_PAUSE, options.timeout)
        if alive:
            say(f"no token within {options.timeout:g} s ({why}), but the server decodes: busy")
    state.setdefault("restarts", 0)
    restart = judge(state, alive, time.time(), options.failures, options.cooldown)
    state["last_probe"] = time.time()
    state["last_ok"] = state["last_probe"] if alive else state.get("last_ok")
    replace(path, json.dumps(state))
    if options.textfile:
        try:
            replace(Path(options.textfile) / f"llamafleet_watchdog_{options.name}.prom", textfile(options.name, state))
        except OSError as exc:
            # Figures are a courtesy; the watch goes on without them.
            say(f"no figures written: {exc}")
    if alive:
        return 0
    if not restart and state["failures"] >= options.failures:
        ago = time.time() - float(state.get("last_restart", 0))
        say(f"no token decoded ({why}); not restarted: {ago:.0f} s since the last time, of {options.cooldown:g} s")
        return 0
    if not restart:
        say(f"no token decoded ({why}); {state['failures']} of {options.failures} before a restart")
        return 0
    say(f"no token decoded {options.failures} times in a row ({why}): restarting {options.unit}")
    sys.stdout.flush()
    return subprocess.run(["systemctl", "restart", options.unit], check=False).returncode


def read_key(name: str) -> str | None:
    """The first key of the instance: of the running service before that of the next start."""
    folders = [os.environ.get("CREDENTIALS_DIRECTORY"), f"/run/credentials/llama-server@{name}.service",
               f"/etc/llamafleet/instances/{name}"]  # fmt: skip
    for folder in folders:
        if folder is None:
            continue
        try:
            text = (Path(folder) / "api-keys").read_text(encoding="utf-8")
        except OSError:
            continue
        for line in text.splitlines():
            if line.strip():
                return line.strip()
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run as a program by the units."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["keys", "ready", "drain", "watch", "decode"])
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--socket")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--failures", type=int, default=3)
    parser.add_argument("--grace", type=float, default=300)
    parser.add_argument("--cooldown", type=float, default=1800)
    parser.add_argument("--unit", default="")
    parser.add_argument("--textfile", default="", help="directory of node_exporter's textfile collector")
    options = parser.parse_args(arguments)
    if options.action == "keys":
        return keys(options.name)
    client = Client(options.host, options.port, options.socket, options.tls, read_key(options.name))
    number = os.environ.get("MAINPID", "")
    pid = int(number) if number.isdigit() else None
    if options.action == "ready":
        return ready(client, options.timeout, pid)
    if options.action == "drain":
        status = drain(client, options.timeout)
        if pid is not None:
            end(pid)
        return status
    if options.action == "watch":
        return watch(client, options)
    try:
        say(json.dumps(decode(client, timeout=options.timeout)))
    except ProbeError as exc:
        say(str(exc), sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
