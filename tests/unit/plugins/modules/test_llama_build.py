# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that starts builds. The scenarios llama_build and build run it; what they are too slow for is here."""

from __future__ import annotations

import ast
import inspect

from ansible_collections.llamafleet.turboquant.plugins.modules import llama_build


def test_the_job_takes_along_whatever_its_files_import():
    sent = {module.__name__.rpartition(".")[2] for module in llama_build._JOB_FILES}
    for module in llama_build._JOB_FILES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and node.level:
                wanted = {alias.name for alias in node.names} if node.module is None else {node.module}
                assert wanted <= sent, (
                    f"{module.__name__} imports {', '.join(wanted - sent)}, which builders are not sent"
                )
