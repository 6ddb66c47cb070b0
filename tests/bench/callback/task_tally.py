# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts the tasks of each host, those that are skipped too: both cost the controller."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: task_tally
type: aggregate
short_description: Count the tasks of each host
description:
  - Writes C(tasks), by host the names of all tasks that ran or were skipped, and C(changed), to C(TASK_TALLY).
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_tally"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self.tasks = defaultdict(list)
        self.changed = defaultdict(list)

    def _note(self, result):
        host, name = result._host.get_name(), result._task.get_name()
        self.tasks[host].append(name)
        if result._result.get("changed"):
            self.changed[host].append(name)

    def v2_runner_on_ok(self, result):
        self._note(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):  # the signature is the core's
        self._note(result)

    def v2_runner_on_skipped(self, result):
        self._note(result)

    def v2_playbook_on_stats(self, stats):
        text = json.dumps({"tasks": self.tasks, "changed": self.changed})
        Path(os.environ["TASK_TALLY"]).write_text(text, encoding="utf-8")
