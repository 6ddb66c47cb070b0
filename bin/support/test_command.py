# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests: bin/test [STAGE ...]. Without a stage all of them; `bin/test --list` names them.

Makes the machine ready first (packages, virtual environment), so it may be called on a fresh one.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time

from . import console, machine


def main() -> int:
    machine.enter_virtualenv(__spec__.name)
    # Only importable inside the virtual environment.
    from . import stages

    parser = argparse.ArgumentParser(prog="bin/test", description=__doc__.splitlines()[0])
    parser.add_argument("stage", nargs="*", help="what to run, see --list; without one, all default stages")
    parser.add_argument("--list", action="store_true", help="name the stages and end")
    options = parser.parse_args()
    if options.list:
        for name, stage in stages.STAGES.items():
            text = (stage.__doc__ or "").strip().partition("\n")[0]
            console.say(f"{name:10} {'' if name in stages.DEFAULT else '(only when named) '}{text}")
        return 0
    if unknown := [name for name in options.stage if name.partition(":")[0] not in stages.STAGES]:
        parser.error(f"no stage is named {', '.join(unknown)}; there are {', '.join(stages.STAGES)}")
    tally = stages.Tally()
    begun = time.monotonic()

    def run(name: str) -> None:
        kind, _, only = name.partition(":")
        try:
            with console.phase(f"stage {name}"):
                stages.STAGES[kind](tally, *([only] if only else []))
        except (Exception, SystemExit) as error:  # the other stages still have something to say
            tally.fail(name, f"{type(error).__name__}: {error}")

    def run_labelled(names: tuple[str, ...]) -> None:
        for name in names:
            with console.labelled(name):
                run(name)

    if options.stage:
        for name in options.stage:
            run(name)
    else:
        console.side_by_side(*(functools.partial(run_labelled, names) for names in stages.BESIDE))
        for name in stages.DEFAULT:
            if not any(name in names for names in stages.BESIDE):
                run(name)
    for skipped in tally.skipped:
        console.say(f"skipped: {skipped}")
    for failure in tally.failures:
        console.say(f"failed: {failure}")
    console.say(f"all stages took {console.clock(time.monotonic() - begun)}")
    skipped = f", {len(tally.skipped)} skipped" if tally.skipped else ""
    console.say(f"{tally.passed} passed, {len(tally.failures)} failed{skipped}")
    return 1 if tally.failures or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
