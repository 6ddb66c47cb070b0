# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers for the plan: read once, found again without a network, and never under a name that is not theirs."""

from __future__ import annotations

import gzip
import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.llamafleet.turboquant.plugins.modules.gguf_info import make_opener
from ansible_collections.llamafleet.turboquant.plugins.plugin_utils._plan_headers import Headers
from ansible_collections.llamafleet.turboquant.tests.unit.gguf_server import serving
from ansible_collections.llamafleet.turboquant.tests.unit.gguf_writer import Writer, small_model

DATA = Writer().file(*small_model())
SHA = hashlib.sha256(DATA).hexdigest()
OPENER = make_opener({"timeout": 5, "validate_certs": True, "ca_path": None, "use_proxy": False})
FORK = "turboquant-69d8e4be"


def reader(folder: Path, **options: Any) -> Headers:
    said: list[str] = []
    headers = Headers(str(folder / "cache"), OPENER, said.append, **options)
    headers.said = said  # type: ignore[attr-defined] # for the tests
    return headers


@pytest.fixture(name="model")
def model_fixture(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "m.gguf").write_bytes(DATA)
    return {"name": "m", "path": str(tmp_path / "m.gguf"), "sha256": SHA, "bytes": len(DATA), "build": FORK}


def test_a_header_is_read_once(tmp_path: Path, model: dict[str, Any]) -> None:
    first, second = reader(tmp_path), reader(tmp_path)
    read = first(model)
    (tmp_path / "m.gguf").unlink()
    assert second(model) == {"model": read["model"], "checks": read["checks"]}
    assert (first.read_now, first.found, second.read_now, second.found) == (1, 0, 0, 1)
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name == f"{SHA}-{FORK}.json.gz"
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_builds_are_kept_apart(tmp_path: Path, model: dict[str, Any]) -> None:
    headers = reader(tmp_path)
    headers(model)
    headers({**model, "build": "upstream-b11434"})
    assert headers.read_now == 2


def test_without_a_digest_the_place_and_its_version_count(tmp_path: Path, model: dict[str, Any]) -> None:
    del model["sha256"], model["bytes"]
    headers = reader(tmp_path)
    headers(model)
    headers(model)
    assert headers.read_now == 1
    (tmp_path / "m.gguf").write_bytes(DATA + bytes(32))
    headers(model)
    assert headers.read_now == 2


def test_no_network_is_needed_once_the_header_is_there(tmp_path: Path) -> None:
    with serving() as server:
        server.files["/m.gguf"] = DATA
        entry = {"name": "m", "url": server.url("/m.gguf"), "build": FORK}
        reader(tmp_path)(entry)
        assert len(server.requests) == 1
    headers = reader(tmp_path)
    headers(entry)
    assert (headers.read_now, headers.found) == (0, 1)


def test_refresh_reads_again(tmp_path: Path) -> None:
    with serving() as server:
        server.files["/m.gguf"] = DATA
        entry = {"name": "m", "url": server.url("/m.gguf"), "build": FORK}
        reader(tmp_path)(entry)
        reader(tmp_path, refresh=True)(entry)
        assert len(server.requests) == 2


# Without the time of packing in it: workers that collect in different seconds would name the tests differently.
@pytest.mark.parametrize(
    "damage", [b"", b"not gzip", *(gzip.compress(text, mtime=0) for text in (b"{", b"[]", b'{"model":1}'))]
)
def test_a_damaged_copy_is_read_again(tmp_path: Path, model: dict[str, Any], damage: bytes) -> None:
    reader(tmp_path)(model)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(damage)
    headers = reader(tmp_path)
    assert headers(model)["model"]["architecture"] == "gemma4"
    assert headers.read_now == 1
    headers(model)
    assert headers.found == 1


def test_a_cut_copy_is_read_again(tmp_path: Path, model: dict[str, Any]) -> None:
    reader(tmp_path)(model)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    headers = reader(tmp_path)
    headers(model)
    assert headers.read_now == 1


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"bytes": 7}, "size_differs", "llama_model_files says 7 bytes, but the file has"),
        ({"sha256": "a" * 64}, "digest_differs", f"says sha256 {'a' * 64}, but the server's file has {SHA}"),
    ],
)
def test_a_file_that_is_not_the_one_meant_is_told_and_not_kept(
    tmp_path: Path, change: dict[str, Any], code: str, message: str
) -> None:
    with serving() as server:
        server.files["/m.gguf"] = DATA
        server.headers["ETag"] = f'"{SHA}"'
        entry = {"name": "m", "url": server.url("/m.gguf"), "build": FORK, **change}
        result = reader(tmp_path)(entry)
    assert [check["code"] for check in result["checks"]] == [code]
    assert message in result["checks"][0]["message"]
    assert not (tmp_path / "cache").exists()


def test_a_truncated_file_is_not_kept_under_the_whole_ones_digest(tmp_path: Path, model: dict[str, Any]) -> None:
    (tmp_path / "m.gguf").write_bytes(DATA[:-200])
    del model["bytes"]
    result = reader(tmp_path)(model)
    assert [check["code"] for check in result["checks"]] == ["truncated"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cut", [10, 300, 6000])
def test_parts_are_read_as_one_file(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a").write_bytes(DATA[:cut])
    with serving() as server:
        server.files["/b"] = DATA[cut:]
        parts = [{"path": str(tmp_path / "a")}, {"url": server.url("/b"), "bytes": len(DATA) - cut}]
        result = reader(tmp_path)({"name": "m", "parts": parts, "sha256": SHA, "bytes": len(DATA), "build": FORK})
    assert result["checks"] == []
    assert result["model"]["file_bytes"] == len(DATA)
    assert result["model"]["tensors"] == small_model()[1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "model 'm' has neither url nor path nor parts in llama_model_files"),
        ({"parts": [{"url": "https://h/x"}]}, "part 0 of model 'm' needs a path, or a url and its bytes"),
        ({"path": "/nonexistent/m.gguf"}, "/nonexistent/m.gguf: No such file or directory"),
    ],
)
def test_entries_that_cannot_be_read(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"model|m\.gguf") as caught:
        reader(tmp_path)({"name": "m", "build": FORK, **entry})
    assert message in str(caught.value)


def test_a_strange_digest_makes_no_strange_path(tmp_path: Path, model: dict[str, Any]) -> None:
    headers = reader(tmp_path)
    headers({**model, "sha256": "../../../escape"})
    assert [path.parent for path in tmp_path.rglob("*.json.gz")] == [tmp_path / "cache"]
