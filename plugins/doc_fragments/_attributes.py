# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that the modules of this collection share. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    """What each module says of check mode, diff mode and repetition."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying the target.
  diff_mode:
    description: In diff mode, returns the details of what has changed, or would change in check_mode.
  idempotent:
    description: A second run outside check mode with the same arguments indicates no change.
"""
