# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers of files here and on a server: how few bytes and requests they cost, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener
from urllib.request import Request as UrlRequest

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _gguf_source
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gguf import GgufError
from ansible_collections.llamafleet.turboquant.tests.unit.gguf_server import FileServer, serving
from ansible_collections.llamafleet.turboquant.tests.unit.gguf_writer import Writer, small_model, vocabulary

MIB = 1024 * 1024
TOKEN = "hf_secretsecretsecret"


class NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


_CLIENT = build_opener(NoRedirects, ProxyHandler({}))


def opener(url: str, headers: dict[str, str]) -> Any:
    try:
        return _CLIENT.open(UrlRequest(url, headers=headers), timeout=10)
    except HTTPError as error:
        return error


def read(url: str, token: str | None = None, **options: Any) -> dict[str, Any]:
    return _gguf_source.read_model(url=url, token=token, opener=opener, **options)


@pytest.fixture(name="server")
def server_fixture() -> Iterator[FileServer]:
    with serving() as server:
        yield server


@pytest.fixture(name="large", scope="module")
def large_fixture() -> tuple[bytes, int]:
    """A model with a vocabulary of Gemma's size and 40 MiB of data, and the size of its header."""
    writer = Writer()
    metadata, tensors = small_model(writer)
    metadata.update(vocabulary(writer, 262_144, 514_906))
    tensors.append(["big.weight", [1024, 10 * 1024], "F32", 40 * MIB])
    head, data = writer.header(metadata, tensors)
    return head + bytes(data), len(head)


def small(**metadata: Any) -> bytes:
    return Writer().file(*small_model(**metadata))


# ---- what a header costs


def test_a_large_header_costs_a_handful_of_requests_and_little_more_than_itself(
    server: FileServer, large: tuple[bytes, int]
) -> None:
    data, header_bytes = large
    server.files["/m.gguf"] = data
    result = read(server.url("/m.gguf"))
    assert result["checks"] == []
    assert result["model"]["header_bytes"] == header_bytes
    assert result["model"]["file_bytes"] == len(data)
    assert header_bytes <= server.sent_bytes <= header_bytes + _gguf_source.BLOCK
    assert len(server.requests) <= 8
    assert result["source"]["requests"] == len(server.requests)
    assert result["source"]["transferred_bytes"] == server.sent_bytes
    # No byte is asked for twice.
    spans = [tuple(map(int, (r.range or "")[6:].split("-"))) for r in server.requests]
    assert all(before[1] + 1 == after[0] for before, after in zip(spans, spans[1:]))


def test_a_small_header_costs_one_request(server: FileServer) -> None:
    server.files["/m.gguf"] = small()
    result = read(server.url("/m.gguf"))
    assert len(server.requests) == 1
    assert result["model"]["file_bytes"] == len(server.files["/m.gguf"])


@pytest.mark.parametrize("behaviour", ["no ranges", "no ranges, no length"])
def test_a_server_that_ignores_ranges_is_left_early(
    server: FileServer, large: tuple[bytes, int], behaviour: str
) -> None:
    data, header_bytes = large
    server.files["/m.gguf"] = data
    server.behaviour = behaviour
    result = read(server.url("/m.gguf"))
    assert len(server.requests) == 1
    assert result["source"]["transferred_bytes"] <= header_bytes + _gguf_source.STREAM_STEP
    # What else was sent was under way in the sockets' buffers.
    assert server.sent_bytes < len(data) - 10 * MIB
    if behaviour == "no ranges":
        assert result["model"]["file_bytes"] == len(data)
        assert result["checks"] == []
    else:
        assert result["model"]["file_bytes"] is None
        assert [check["code"] for check in result["checks"]] == ["size_unknown"]


def test_a_server_that_starts_to_ignore_ranges_is_read_from_the_start_again(
    server: FileServer, large: tuple[bytes, int]
) -> None:
    data, header_bytes = large
    server.files["/m.gguf"] = data

    def switching(url: str, headers: dict[str, str]) -> Any:
        if len(server.requests) == 2:
            server.behaviour = "no ranges"
        return opener(url, headers)

    result = _gguf_source.read_model(url=server.url("/m.gguf"), opener=switching)
    assert result["model"]["header_bytes"] == header_bytes
    assert len(server.requests) == 3


def test_a_server_that_does_not_tell_the_size(server: FileServer) -> None:
    server.files["/m.gguf"] = small()
    server.behaviour = "no total"
    result = read(server.url("/m.gguf"))
    assert result["model"]["file_bytes"] is None
    assert [check["code"] for check in result["checks"]] == ["size_unknown"]


def test_a_local_file_is_read_to_its_headers_end(tmp_path: Path, large: tuple[bytes, int]) -> None:
    data, header_bytes = large
    (tmp_path / "m.gguf").write_bytes(data)
    result = _gguf_source.read_model(path=str(tmp_path / "m.gguf"))
    assert result["model"]["file_bytes"] == len(data)
    assert header_bytes <= result["source"]["transferred_bytes"] <= header_bytes + _gguf_source.BLOCK


# ---- redirects and tokens


def test_the_token_goes_to_the_named_server_only(server: FileServer) -> None:
    data = small()
    with serving() as other:
        other.files["/cdn/m.gguf"] = data
        server.redirects["/o/r/resolve/main/m.gguf"] = other.url("/cdn/m.gguf?X-Amz-Signature=abc")
        server.headers = {"X-Linked-ETag": '"878be93f"', "X-Repo-Commit": "c099eb48"}
        result = read("hf:o/r/m.gguf", TOKEN, endpoint=server.url(""))
        assert [r.authorization for r in server.requests] == [f"Bearer {TOKEN}"]
        assert [r.authorization for r in other.requests] == [None]
    assert result["source"]["etag"] == "878be93f"
    assert result["source"]["revision"] == "c099eb48"
    assert result["source"]["url"] == server.url("/o/r/resolve/main/m.gguf")
    assert "Signature" not in str(result)


@pytest.mark.parametrize("place", ["localhost", "127.0.0.1"])
def test_the_token_stays_with_host_and_port(server: FileServer, place: str) -> None:
    server.files["/b.gguf"] = small()
    server.redirects["/a.gguf"] = server.url("/b.gguf", place)
    server.token = TOKEN
    if place == "127.0.0.1":
        read(server.url("/a.gguf"), TOKEN)
        assert [r.authorization for r in server.requests] == [f"Bearer {TOKEN}"] * 2
    else:
        with pytest.raises(GgufError, match=r"HTTP status 401"):
            read(server.url("/a.gguf"), TOKEN)
        assert server.requests[1].authorization is None


def test_a_relative_redirect_keeps_the_token(server: FileServer) -> None:
    server.files["/b.gguf"] = small()
    server.redirects["/a.gguf"] = "/b.gguf"
    server.token = TOKEN
    read(server.url("/a.gguf"), TOKEN)


def test_later_ranges_go_to_where_the_first_led(server: FileServer, large: tuple[bytes, int]) -> None:
    server.files["/b.gguf"] = large[0]
    server.redirects["/a.gguf"] = "/b.gguf"
    read(server.url("/a.gguf"))
    assert [r.path for r in server.requests].count("/a.gguf") == 1


def test_a_signed_address_that_runs_out_is_renewed_once(server: FileServer, large: tuple[bytes, int]) -> None:
    server.files["/b.gguf"] = large[0]
    server.redirects["/a.gguf"] = "/b.gguf?X-Amz-Signature=abc"
    server.behaviour = "expires"
    assert read(server.url("/a.gguf"))["checks"] == []
    assert [r.path for r in server.requests].count("/a.gguf") == 2


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", r"scheme is file, but must be http, https or hf"),
        ("/a.gguf", r"more than 5 redirects"),
        ("https://:80/m.gguf", r"has no host"),
        ("", r"redirect without a Location"),
    ],
)
def test_bad_redirects_are_refused(server: FileServer, location: str, message: str) -> None:
    server.redirects["/a.gguf"] = location
    with pytest.raises(GgufError, match=message):
        read(server.url("/a.gguf"))


def test_a_redirect_from_https_to_http_is_refused() -> None:
    class Answer:
        status = 302
        headers = {"Location": "http://example.org/m.gguf?sig=1"}  # noqa: RUF012 - a stub of one response

        def close(self) -> None:
            pass

    with pytest.raises(GgufError, match=r"redirects from https to http://example.org/m.gguf$"):
        _gguf_source.read_model(url="https://example.org/m.gguf", opener=lambda *_: Answer())  # type: ignore[arg-type] # a stub


# ---- refusals


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("ftp://h/m.gguf", None, r"scheme is ftp, but must be http, https or hf"),
        ("m.gguf", None, r"scheme is missing"),
        ("https:///m.gguf", None, r"has no host"),
        ("https://h:99999/m.gguf", None, r"malformed: Port out of range"),
        ("https://h/a b.gguf", None, r"spaces or control characters"),
        ("https://h/a\r\nX: y", None, r"spaces or control characters"),
        ("http://h/m.gguf", TOKEN, r"a token over http could be read on the way; use https"),
        ("https://h/m.gguf", "a\nb", r"token is empty or has spaces"),
        ("https://u:p@h/m.gguf", TOKEN, r"can carry one of the two"),
        ("hf:owner/m.gguf", None, r"'hf:owner/m.gguf' is not of the form hf:OWNER/REPO/FILE"),
        ("hf:o/r/m.gguf@", None, r"is not of the form"),
    ],
)
def test_urls_that_are_refused_before_any_request(url: str, token: str | None, message: str) -> None:
    with pytest.raises(GgufError, match=message) as caught:
        _gguf_source.read_model(url=url, token=token, opener=lambda *_: pytest.fail("a request was sent"))
    assert (token or TOKEN) not in str(caught.value)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("changes", r"changed while it was read, from \d+ to \d+ bytes"),
        ("new etag", r"changed while it was read \(ETag 1 became 2\)"),
        ("wrong start", r"asked for \d+ bytes from 524288 on, the server answered with Content-Range 'bytes 524287-"),
        ("cut short", r"the connection ended after \d+ of \d+ bytes from 524288 on"),
        ("error", r"HTTP status 503$"),
    ],
)
def test_servers_that_misbehave(server: FileServer, large: tuple[bytes, int], behaviour: str, message: str) -> None:
    server.files["/m.gguf"] = large[0]
    server.behaviour = behaviour
    with pytest.raises(GgufError, match=message) as caught:
        read(server.url("/m.gguf?X-Amz-Signature=abc"), TOKEN)
    assert "Signature" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "secret-body" not in str(caught.value)


def test_compressed_answers_are_refused(server: FileServer) -> None:
    server.files["/m.gguf"] = small()
    server.headers["Content-Encoding"] = "gzip"
    with pytest.raises(GgufError, match=r"sends Content-Encoding gzip though identity was asked for"):
        read(server.url("/m.gguf"))


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        (None, 401, r"HTTP status 401: the server wants a token"),
        ("wrong", 401, r"HTTP status 401: the token is not accepted"),
    ],
)
def test_missing_and_wrong_tokens(server: FileServer, token: str | None, status: int, message: str) -> None:
    server.files["/m.gguf"] = small()
    server.token = TOKEN
    with pytest.raises(GgufError, match=message):
        read(server.url("/m.gguf"), token)


def test_a_missing_file(server: FileServer) -> None:
    with pytest.raises(GgufError, match=r"/m.gguf: HTTP status 404: there is no such file, or it is private"):
        read(server.url("/m.gguf"))


def test_a_page_instead_of_a_model(server: FileServer) -> None:
    server.files["/m.gguf"] = b"<!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(GgufError, match=r"not a GGUF file: it begins with '<!DO'"):
        read(server.url("/m.gguf"))


def test_a_remote_file_that_ends_in_its_header(server: FileServer, large: tuple[bytes, int]) -> None:
    server.files["/m.gguf"] = large[0][: 3 * MIB]
    with pytest.raises(GgufError, match=r"but (3145728 bytes are left|the file has 3145728|\d+ bytes are left)"):
        read(server.url("/m.gguf"))


def test_no_server_there() -> None:
    with serving() as gone:
        url = gone.url("/m.gguf?sig=abc")
    with pytest.raises(GgufError, match=r"Connection refused$") as caught:
        read(url)
    assert "sig" not in str(caught.value)


def test_local_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("absent", "No such file or directory"),
        (".", "not a regular file"),
        ("pipe", "not a regular"),
    ):
        with pytest.raises(GgufError, match=message):
            _gguf_source.read_model(path=str(tmp_path / name))


# ---- references and parts


@pytest.mark.parametrize(
    ("reference", "address"),
    [
        ("hf:o/r/m.gguf", "https://huggingface.co/o/r/resolve/main/m.gguf"),
        ("hf:o/r/sub dir/m.gguf@refs/pr/3", "https://huggingface.co/o/r/resolve/refs%2Fpr%2F3/sub%20dir/m.gguf"),
        ("hf:o/r.x/m.gguf@c099eb48e663", "https://huggingface.co/o/r.x/resolve/c099eb48e663/m.gguf"),
        ("https://h/m.gguf", "https://h/m.gguf"),
    ],
)
def test_references(reference: str, address: str) -> None:
    assert _gguf_source.resolve_reference(reference) == address
    assert _gguf_source.resolve_reference(reference, "https://huggingface.co/") == address


def split_files(count: int = 3, **wrong: Any) -> list[bytes]:
    writer = Writer()
    metadata, tensors = small_model(writer)
    files = []
    for number in range(count):
        head = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors), **wrong}
        part = tensors[number::count]
        files.append(writer.file({**metadata, **head} if number == 0 else head, part))
    return files


@pytest.mark.parametrize("given", [1, 2, 3])
def test_split_files_are_read_as_one(tmp_path: Path, server: FileServer, given: int) -> None:
    files = split_files()
    for number, data in enumerate(files, 1):
        (tmp_path / f"m-{number:05d}-of-00003.gguf").write_bytes(data)
        server.files[f"/x/m-{number:05d}-of-00003.gguf"] = data
    local = _gguf_source.read_model(path=str(tmp_path / f"m-{given:05d}-of-00003.gguf"))
    remote = read(server.url(f"/x/m-{given:05d}-of-00003.gguf?download=true"))
    assert local["model"] == remote["model"]
    assert local["checks"] == []
    assert sorted(row[0] for row in local["model"]["tensors"]) == sorted(row[0] for row in small_model()[1])
    assert local["model"]["file_bytes"] == sum(map(len, files))
    assert [part["tensors"] for part in local["parts"]] == [2, 1, 1]


def test_split_files_that_do_not_belong_together(tmp_path: Path) -> None:
    files = split_files()
    for number in (1, 2, 3):
        (tmp_path / f"m-{number:05d}-of-00003.gguf").write_bytes(files[0])
    with pytest.raises(GgufError, match=r"part 1 \(from 0\) of 3, but its header says split.no 0 of split.count 3"):
        _gguf_source.read_model(path=str(tmp_path / "m-00001-of-00003.gguf"))
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(GgufError, match=r"m-00002-of-00003.gguf: No such file"):
        _gguf_source.read_model(path=str(tmp_path / "m-00001-of-00003.gguf"))


def test_a_part_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(split_files()[0])
    with pytest.raises(GgufError, match=r"one of 3 files; name it as llama.cpp does, NAME-00001-of-00003.gguf"):
        _gguf_source.read_model(path=str(tmp_path / "m.gguf"))


def test_the_number_of_tensors_in_all_parts(tmp_path: Path) -> None:
    for number, data in enumerate(split_files(**{"split.tensors.count": 5}), 1):
        (tmp_path / f"m-{number:05d}-of-00003.gguf").write_bytes(data)
    result = _gguf_source.read_model(path=str(tmp_path / "m-00001-of-00003.gguf"))
    assert [check["code"] for check in result["checks"]] == ["split_tensors"]


@pytest.mark.parametrize("name", ["m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-00001-of-99999.gguf"])
def test_part_names_that_cannot_be(name: str) -> None:
    with pytest.raises(GgufError, match=r"cannot be|more than the 1000"):
        _gguf_source.part_names(name)


def test_a_public_url_has_no_secrets() -> None:
    assert _gguf_source.public_url("https://u:p@[::1]:8/x.gguf?sig=1#f") == "https://[::1]:8/x.gguf"
