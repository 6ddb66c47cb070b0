# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases with their elapsed time, and commands that are never silent for a minute."""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from types import FrameType

# A line at least this often, so that a person (or a CI that kills silent jobs) sees it is alive.
HEARTBEAT_SECONDS = 20
TAIL_LINES = 40


class CommandFailed(RuntimeError):
    """A command ended with another status than 0; the message has its last lines."""


def clock(seconds: float) -> str:
    """Return `75.3` as `1:15`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


# What the lines of this thread begin with where several things run at once.
_begins: contextvars.ContextVar[str] = contextvars.ContextVar("_begins", default="")


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Begin every line that this thread prints with a label."""
    token = _begins.set(f"[{label}] ")
    try:
        yield
    finally:
        _begins.reset(token)


# What runs side by side, each in a session of its own, and whether the person wants an end: threads do not get Ctrl-C,
# so it is passed on here, to the children of the commands too.
_running: set[subprocess.Popen[str]] = set()
_interrupted = threading.Event()


def side_by_side(*jobs: Callable[[], None]) -> None:
    """Run jobs at the same time, and wait for all. Ctrl-C ends their commands, and none of them begins another."""
    with futures.ThreadPoolExecutor(len(jobs)) as pool:
        try:
            begun = [pool.submit(job) for job in jobs]
            for job in begun:
                job.result()
        except KeyboardInterrupt:
            _interrupted.set()
            for process in list(_running):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
            raise


def say(text: str) -> None:
    _write(_begins.get() + text)


def _write(line: str) -> None:
    # One write a line: other threads may be writing theirs.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def to_its_end() -> Iterator[None]:
    """Put Ctrl-C off to the end of what must not be cut off: a package manager half-way leaves the machine broken.

    Commands inside have to run in a session of their own, or the terminal interrupts them all the same.
    """
    asked = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        say("    ... stops as soon as this step has ended: cut off here it would leave the machine half changed")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            raise KeyboardInterrupt


@contextlib.contextmanager
def phase(title: str) -> Iterator[None]:
    """Print what begins and, at its end, how long it took."""
    say(f"==> {title}")
    begun = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"<== {title}: failed after {clock(time.monotonic() - begun)}")
        raise
    say(f"<== {title}: {clock(time.monotonic() - begun)}")


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    check: bool = True,
    own_session: bool = False,
) -> int:
    """Run a command and return its exit status.

    Without `log` its output goes to the terminal. With `log` it goes to that file, and the
    terminal gets its last line every HEARTBEAT_SECONDS; when it fails, its last TAIL_LINES.
    A long quiet command without `log` gets a line with the elapsed time. A command in its own
    session is not reached by the terminal's Ctrl-C.
    """
    if _interrupted.is_set():
        raise KeyboardInterrupt
    command = [str(part) for part in argv]
    beside = threading.current_thread() is not threading.main_thread()
    begins = _begins.get()
    begun = time.monotonic()
    last_output = [begun]
    last_line = [""]
    process = subprocess.Popen(
        command,
        env=dict(os.environ, **env) if env else None,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        bufsize=1,
        start_new_session=own_session or beside,
    )
    if beside:
        _running.add(process)
        if _interrupted.is_set():
            os.killpg(process.pid, signal.SIGINT)
    done = threading.Event()

    def heartbeat() -> None:
        while not done.wait(1):
            if time.monotonic() - last_output[0] >= HEARTBEAT_SECONDS:
                last_output[0] = time.monotonic()
                _write(f"{begins}    ... {clock(time.monotonic() - begun)} {last_line[0][:150]}")

    beating = threading.Thread(target=heartbeat, daemon=True)
    beating.start()
    tail: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            record = stack.enter_context(log.open("w", encoding="utf-8")) if log else None
            assert process.stdout is not None
            for line in process.stdout:
                last_line[0] = line.strip() or last_line[0]
                if record:
                    record.write(line)
                    record.flush()
                    tail = [*tail[1 - TAIL_LINES :], line]
                else:
                    last_output[0] = time.monotonic()
                    _write(begins + line.rstrip("\n"))
        status = process.wait()
    except BaseException:
        # Ctrl-C reaches the child too; wait for it, so that nothing goes on unseen.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        raise
    finally:
        _running.discard(process)
        done.set()
        beating.join()
    if status and check:
        sys.stdout.writelines(tail)
        place = f"; all of its output is in {log}" if log else ""
        raise CommandFailed(f"`{' '.join(command)[:300]}` ended with status {status}{place}")
    return status


def output(argv: Sequence[str | Path], *, timeout: float = 60, env: Mapping[str, str] | None = None) -> str | None:
    """Return what a command prints, or None where it is absent, fails or takes longer than `timeout` seconds."""
    try:
        done = subprocess.run(
            [str(part) for part in argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ, **env) if env else None,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
