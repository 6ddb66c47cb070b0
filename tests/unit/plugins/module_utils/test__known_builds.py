# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _known_builds


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://github.com/TheTom/llama-cpp-turboquant.git", _known_builds.FORK),
        ("https://github.com/TheTom/llama-cpp-turboquant/", _known_builds.FORK),
        ("git@github.com:ggml-org/llama.cpp.git", _known_builds.UPSTREAM),
        ("https://mirror.example.org/ggml-org/llama.cpp", _known_builds.UPSTREAM),
        ("https://github.com/NotTheTom/llama-cpp-turboquant", ""),
        ("/srv/git/llama.git", ""),
        ("", ""),
    ],
)
def test_repository_of(url, expected):
    assert _known_builds.repository_of(url) == expected


@pytest.mark.parametrize(
    ("repository", "number", "refused"),
    [
        (_known_builds.FORK, 9079, False),
        (_known_builds.FORK, 9913, False),
        (_known_builds.FORK, 9914, True),
        (_known_builds.FORK, 10164, True),
        (_known_builds.FORK, 10513, True),
        (_known_builds.FORK, 10514, False),  # nothing is known of it
        (_known_builds.UPSTREAM, 10164, False),
        ("", 10164, False),
    ],
)
def test_known_bad_builds_are_refused(repository, number, refused):
    found = _known_builds.refusal(_known_builds.look_up(repository, number, "0" * 40, ["cpu"]))
    assert (found is not None) is refused
    if found is not None:
        assert "turbo4 is corrupt" in found
        assert "TheTom/llama-cpp-turboquant#311" in found
        assert f"Take commit {_known_builds.DEFAULT_COMMIT}" in found


def test_the_default_pin_is_known_from_any_mirror():
    rows = _known_builds.look_up("", 0, _known_builds.DEFAULT_COMMIT, ["cpu", "cuda"])
    assert [row.verdict for row in rows] == ["good", "note"]
    # What is said of CUDA does not concern a build without it.
    rows = _known_builds.look_up("", 0, _known_builds.DEFAULT_COMMIT, ["cpu", "vulkan"])
    assert [row.verdict for row in rows] == ["good"]


def test_every_row_says_where_it_is_from():
    for row in _known_builds.TABLE:
        assert row.verdict in ("good", "bad", "note")
        assert row.why
        assert row.source
        assert row.last is None or row.first <= row.last
        if row.verdict == "bad":
            assert re.fullmatch(r"[0-9a-f]{40}", row.take)
