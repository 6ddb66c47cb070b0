# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show on the controller how long work goes on. Private to the collection: it may change at any time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

# Nobody should look at a screen for long without seeing it change: with the time between two looks at the
# host this makes a line every 15 seconds.
EVERY = 12.0


class Progress:
    """Lines such as `builder: compile [120/300] 95 s`, a new one at each phase and at least every 15 seconds."""

    def __init__(self, show: Callable[[str], None], label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._show = show
        self._label = label
        self._clock = clock
        self._begun = clock()
        self._last: float | None = None
        self._phase = ""

    def say(self, phase: str, text: str = "", elapsed: float | None = None) -> bool:
        """Show a line if its phase is new or the last line is old; say whether it was shown."""
        now = self._clock()
        if phase == self._phase and self._last is not None and now - self._last < EVERY:
            return False
        self._phase, self._last = phase, now
        seconds = now - self._begun if elapsed is None else elapsed
        self._show(" ".join(part for part in (f"{self._label}:", phase, text, f"{seconds:.0f} s") if part))
        return True


class Ticking:
    """Show a line every few seconds while something runs that says nothing itself."""

    def __init__(self, progress: Progress, phase: str, text: str = "", every: float = EVERY) -> None:
        self._progress = progress
        self._phase = phase
        self._text = text
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            self._progress.say(self._phase, self._text)

    def __enter__(self) -> Ticking:
        self._progress.say(self._phase, self._text)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()


def megabytes(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
