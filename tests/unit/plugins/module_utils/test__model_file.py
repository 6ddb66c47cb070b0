# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The download is run against a real HTTP server on the loopback interface that misbehaves on demand."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _model_file as mf

CONTENT = random.Random(7).randbytes(3 * mf.BLOCK + 12345)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; what goes wrong is set on the server object."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path in server.statuses:
            status = server.statuses[self.path]
            status = status.pop(0) if isinstance(status, list) and status else status
            if isinstance(status, int):
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        content = server.files.get(self.path, CONTENT)
        start = 0
        wanted = self.headers.get("Range")
        if wanted and not server.ignore_range:
            start = int(wanted.partition("=")[2].rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start + server.shift_range}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if server.cuts:
            body = body[: server.cuts.pop(0)]
            self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.seen, httpd.files, httpd.redirects, httpd.statuses = [], {}, {}, {}
        httpd.cuts, httpd.ignore_range, httpd.shift_range = [], False, 0
        httpd.base = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def wanted(server, sha256=DIGEST, **more):
    entry = {"name": "m.gguf", "url": f"{server.base}/m.gguf", "sha256": sha256, **more}
    return mf.parse_files([entry])[0]


def fetch(directory, item, **more):
    return mf.fetch(directory, item, sleep=lambda _seconds: None, **more)


def test_a_file_arrives_whole_and_is_named_only_when_it_is_right(server, tmp_path):
    item = wanted(server, bytes=len(CONTENT))
    partial = fetch(tmp_path, item)
    assert partial.name == f"m.gguf.{DIGEST[:16]}.partial"
    assert not (tmp_path / "m.gguf").exists()
    record = mf.Record(tmp_path)
    mf.place(tmp_path, item, partial, record)
    assert (tmp_path / "m.gguf").read_bytes() == CONTENT
    assert not partial.exists()
    assert mf.state_of(tmp_path, item, mf.Record(tmp_path)) == "present"


def test_an_interrupted_download_asks_only_for_the_rest(server, tmp_path):
    item = wanted(server)
    (tmp_path / item.partial).write_bytes(CONTENT[:1000])
    assert fetch(tmp_path, item).read_bytes() == CONTENT
    assert [headers.get("Range") for _path, headers in server.seen] == ["bytes=1000-"]


def test_a_cut_connection_is_made_again_from_where_it_stopped(server, tmp_path):
    server.cuts = [mf.BLOCK + 5, 17]
    assert fetch(tmp_path, wanted(server)).read_bytes() == CONTENT
    ranges = [headers.get("Range") for _path, headers in server.seen]
    assert ranges == [None, f"bytes={mf.BLOCK + 5}-", f"bytes={mf.BLOCK + 22}-"]


def test_a_server_that_ignores_the_range_makes_it_start_over(server, tmp_path):
    server.ignore_range = True
    item = wanted(server)
    (tmp_path / item.partial).write_bytes(CONTENT[:1000])
    assert fetch(tmp_path, item).read_bytes() == CONTENT


def test_a_range_that_is_another_than_asked_for_is_not_appended(server, tmp_path):
    server.shift_range = 1
    item = wanted(server)
    (tmp_path / item.partial).write_bytes(CONTENT[:1000])
    # The second try begins at 0 and needs no range.
    assert fetch(tmp_path, item).read_bytes() == CONTENT
    assert [headers.get("Range") for _path, headers in server.seen] == ["bytes=1000-", None]


def test_a_partial_that_was_complete_needs_only_its_digest(server, tmp_path):
    item = wanted(server)
    (tmp_path / item.partial).write_bytes(CONTENT)
    assert fetch(tmp_path, item).read_bytes() == CONTENT


def test_a_partial_longer_than_the_file_starts_over(server, tmp_path):
    item = wanted(server)
    (tmp_path / item.partial).write_bytes(CONTENT + b"x")
    assert fetch(tmp_path, item).read_bytes() == CONTENT


def test_a_wrong_digest_is_refused_and_its_bytes_are_not_kept(server, tmp_path):
    item = wanted(server, sha256="0" * 64)
    with pytest.raises(mf.ModelFileError, match=rf"{DIGEST}.*inventory says {'0' * 64}"):
        fetch(tmp_path, item)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_never_grows_ends_and_keeps_what_it_has(server, tmp_path):
    server.cuts = [500] + [0] * 10
    item = wanted(server)
    with pytest.raises(mf.ModelFileError, match=r"cut short 3 times.*500 bytes are kept"):
        fetch(tmp_path, item, retries=2)
    assert (tmp_path / item.partial).stat().st_size == 500


def test_another_size_than_promised_is_refused_before_a_byte_is_written(server, tmp_path):
    item = wanted(server, bytes=len(CONTENT) + 1)
    with pytest.raises(mf.ModelFileError, match=rf"offers {len(CONTENT)} bytes, but bytes says {len(CONTENT) + 1}"):
        fetch(tmp_path, item)
    assert (tmp_path / item.partial).stat().st_size == 0


@pytest.mark.parametrize(("status", "hint"), [(404, "check the address"), (401, "wants a token"), (403, "gated")])
def test_a_refusal_of_the_server_is_final_and_said(server, tmp_path, status, hint):
    server.statuses["/m.gguf"] = status
    with pytest.raises(mf.ModelFileError, match=rf"HTTP status {status}.*{hint}"):
        fetch(tmp_path, wanted(server))
    assert len(server.seen) == 1


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
    server.statuses["/m.gguf"] = [503, 503]
    assert fetch(tmp_path, wanted(server)).read_bytes() == CONTENT


def test_no_space_is_refused_with_the_figures_before_a_byte_is_written(server, tmp_path):
    item = wanted(server)  # the size is known only from the answer's header
    with pytest.raises(
        mf.ModelFileError, match=rf"{len(CONTENT)} bytes .*only 1000 bytes .*available; free 3\.\d+ MiB"
    ):
        fetch(tmp_path, item, free=lambda: 1000)
    assert (tmp_path / item.partial).stat().st_size == 0


def test_the_space_of_all_files_is_added_up_less_what_is_there(tmp_path):
    items = mf.parse_files(
        [{"name": f"{n}.gguf", "url": "https://h/x", "sha256": str(n) * 64, "bytes": 1000} for n in (1, 2)]
    )
    (tmp_path / items[0].partial).write_bytes(b"x" * 400)
    assert mf.space_needed(tmp_path, items) == 1600
    mf.check_space(tmp_path, "both", 1600, 100, free=1700)
    with pytest.raises(mf.ModelFileError, match=r"no space for both"):
        mf.check_space(tmp_path, "both", 1600, 100, free=1699)


def test_space_is_looked_up_where_the_directory_will_be(tmp_path):
    with pytest.raises(mf.ModelFileError, match="no space"):
        mf.check_space(tmp_path / "not" / "yet", "x", 1 << 60, 0)


def test_a_token_goes_to_the_address_but_to_no_other_origin(server, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        other.seen, other.files, other.redirects, other.statuses = [], {}, {}, {}
        other.cuts, other.ignore_range, other.shift_range = [], False, 0
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            server.redirects["/m.gguf"] = "/same"
            server.redirects["/same"] = f"http://127.0.0.1:{other.server_address[1]}/cdn"
            assert fetch(tmp_path, wanted(server, token="s3cret")).read_bytes() == CONTENT
        finally:
            other.shutdown()
            thread.join()
    assert [headers.get("Authorization") for _path, headers in server.seen] == ["Bearer s3cret", "Bearer s3cret"]
    assert [headers.get("Authorization") for _path, headers in other.seen] == [None]


def test_a_redirect_to_a_local_file_is_refused(server, tmp_path):
    server.redirects["/m.gguf"] = "file:///etc/shadow"
    with pytest.raises(mf.ModelFileError, match=r"HTTP status 302|not http or https"):
        fetch(tmp_path, wanted(server))


def test_a_redirect_from_https_to_clear_text_is_refused():
    request = mf.urllib.request.Request("https://a.example/x")
    with pytest.raises(mf.ModelFileError, match="redirects from https to clear text"):
        mf._Redirects().redirect_request(request, None, 302, "Found", {}, "http://a.example/x")


def test_a_message_never_shows_a_query_or_a_password():
    assert mf.shown("https://u:p@h.example:8443/a/b?X-Amz-Signature=abc") == "https://h.example:8443/a/b"


def parts(server, sizes=True, order=(0, 1, 2)):
    cut = [CONTENT[:100], CONTENT[100 : mf.BLOCK], CONTENT[mf.BLOCK :]]
    for index, piece in enumerate(cut):
        server.files[f"/p{index}"] = piece
    entries = []
    for index in order:
        entry = {"url": f"{server.base}/p{index}", "sha256": hashlib.sha256(cut[index]).hexdigest()}
        if sizes:
            entry["bytes"] = len(cut[index])
        entries.append(entry)
    return {"name": "m.gguf", "sha256": DIGEST, "parts": entries}


@pytest.mark.parametrize("already", [0, 50, 100, 5000, mf.BLOCK, len(CONTENT)])
def test_parts_are_joined_and_resumed_anywhere(server, tmp_path, already):
    item = mf.parse_files([parts(server)])[0]
    (tmp_path / item.partial).write_bytes(CONTENT[:already])
    assert fetch(tmp_path, item).read_bytes() == CONTENT


def test_a_wrong_part_is_named_and_the_parts_before_it_are_kept(server, tmp_path):
    item = mf.parse_files([parts(server)])[0]
    server.files["/p1"] = b"\0" * len(server.files["/p1"])
    with pytest.raises(mf.ModelFileError, match="part 2 of 3: sha256"):
        fetch(tmp_path, item)
    assert (tmp_path / item.partial).read_bytes() == CONTENT[:100]


def test_parts_in_the_wrong_order_are_refused(server, tmp_path):
    item = mf.parse_files([parts(server, order=(1, 0, 2))])[0]
    with pytest.raises(mf.ModelFileError, match="check the order of the parts"):
        fetch(tmp_path, item)
    assert list(tmp_path.iterdir()) == []


HTTP = {"name": "a.gguf", "url": "https://h/x", "sha256": "a" * 64}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([dict(HTTP, name="../x")], r"'\.\./x'"),
        ([dict(HTTP, name=".x")], "no leading dot"),
        ([dict(HTTP, name="a.partial")], r"not ending in \.partial"),
        ([HTTP, HTTP], "listed twice"),
        ([dict(HTTP, sha256="abc")], "'abc'.*64 hexadecimal digits"),
        ([dict(HTTP, sha256=None)], "64 hexadecimal digits"),
        ([dict(HTTP, path="/x")], "not both"),
        ([dict(HTTP, url=None)], "not neither"),
        ([dict(HTTP, url="ftp://h/x")], "must begin with https://"),
        ([dict(HTTP, url="https://u:p@h/x")], "credentials as token"),
        ([dict(HTTP, url="http://h.example/x", token="t")], "clear text"),
        ([dict(HTTP, bytes=0)], "at least 1"),
        ([dict(HTTP, bytes=True)], "at least 1"),
        ([dict(HTTP, url=None, path="rel/x")], "'rel/x' is not absolute"),
        ([dict(HTTP, parts=[HTTP])], "parts stands beside"),
        ([dict(HTTP, url=None, parts=[dict(HTTP)])], "part 1: a part from a url needs bytes"),
        (
            [dict(HTTP, url=None, parts=[dict(HTTP, bytes=1), dict(HTTP, url=None, path="/x")])],
            "partly url and partly path",
        ),
        ([dict(HTTP, url=None, bytes=3, parts=[dict(HTTP, bytes=1), dict(HTTP, bytes=1)])], "add up to 2"),
        ([dict(HTTP, url="hf:owner/repo")], "hf:OWNER/REPO/FILE"),
        ([dict(HTTP, url="hf:o/r/../x")], "hf:OWNER/REPO/FILE"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(entries, message):
    with pytest.raises(mf.ModelFileError, match=message):
        mf.parse_files(entries)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("hf:o/r/f.gguf", "https://huggingface.co/o/r/resolve/main/f.gguf"),
        ("hf:o/r/sub/f x.gguf@c099eb48", "https://huggingface.co/o/r/resolve/c099eb48/sub/f%20x.gguf"),
        ("hf:o/r/f.gguf@refs/pr/1", "https://huggingface.co/o/r/resolve/refs%2Fpr%2F1/f.gguf"),
    ],
)
def test_hf_addresses(address, url):
    assert mf.hf_url(address) == url


def test_the_hf_token_goes_to_hf_addresses_only():
    items = mf.parse_files([dict(HTTP, url="hf:o/r/f"), dict(HTTP, name="b")], hf_token="t")
    assert [item.sources[0].token for item in items] == ["t", None]


def placed(tmp_path, content=b"model"):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    record = mf.Record(tmp_path)
    record.note(path, hashlib.sha256(content).hexdigest())
    item = mf.parse_files([dict(HTTP, sha256=hashlib.sha256(content).hexdigest())])[0]
    return path, item


def test_a_file_is_not_read_again_while_it_looks_the_same(tmp_path):
    path, item = placed(tmp_path)
    assert mf.state_of(tmp_path, item, mf.Record(tmp_path)) == "present"
    assert mf.state_of(tmp_path, item, mf.Record(tmp_path), always=True) == "unverified"
    os.utime(path, ns=(1, 1))
    assert mf.state_of(tmp_path, item, mf.Record(tmp_path)) == "unverified"
    path.unlink()
    assert mf.state_of(tmp_path, item, mf.Record(tmp_path)) == "absent"


def test_a_new_digest_and_a_cut_file_are_changes(tmp_path):
    path, item = placed(tmp_path)
    assert mf.state_of(tmp_path, item._replace(sha256="b" * 64), mf.Record(tmp_path)) == "changed"
    assert mf.state_of(tmp_path, item._replace(size=6), mf.Record(tmp_path)) == "changed"
    assert path.exists()


def test_a_link_in_the_place_of_a_model_is_refused(tmp_path):
    (tmp_path / "a.gguf").symlink_to("/etc/passwd")
    with pytest.raises(mf.ModelFileError, match="not a regular file"):
        mf.state_of(tmp_path, mf.parse_files([HTTP])[0], mf.Record(tmp_path))


def test_a_damaged_record_means_that_nothing_is_known(tmp_path):
    _path, item = placed(tmp_path)
    (tmp_path / mf.RECORD_NAME).write_text('{"a.gguf": ')
    assert mf.state_of(tmp_path, item, mf.Record(tmp_path)) == "unverified"


def test_only_what_was_placed_is_pruned_and_only_foreign_partials_removed(tmp_path):
    _path, item = placed(tmp_path)
    (tmp_path / "by-hand.gguf").write_bytes(b"x")
    (tmp_path / item.partial).write_bytes(b"x")
    (tmp_path / "a.gguf.0000000000000000.partial").write_bytes(b"x")
    record = mf.Record(tmp_path)
    assert mf.prunable(tmp_path, [], record) == ["a.gguf"]
    assert mf.prunable(tmp_path, [item], record) == []
    assert mf.partial_files(tmp_path, [item]) == ["a.gguf.0000000000000000.partial"]
    assert mf.partial_files(tmp_path / "none", [item]) == []


def test_a_second_run_waits_for_the_lock_and_names_who_holds_it(tmp_path):
    code = (
        "import fcntl,os,sys,time\n"
        f"f=open({str(tmp_path / mf.LOCK_NAME)!r},'w'); fcntl.flock(f,fcntl.LOCK_EX)\n"
        "f.write(str(os.getpid())); f.flush()\n"
        "print('held',flush=True); sys.stdin.readline()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(mf.ModelFileError, match=rf"process {process.pid}\) holds"),
            mf.locked(tmp_path, 1, sleep=lambda _seconds: None),
        ):
            pass
    finally:
        process.communicate("\n", timeout=10)
    with mf.locked(tmp_path, 0):
        assert (tmp_path / mf.LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_chunks_from_the_controller_make_the_file(tmp_path):
    item = mf.parse_files([dict(HTTP, url=None, path="/c", sha256=DIGEST, bytes=len(CONTENT))])[0]
    chunk = tmp_path / "chunk"
    assert mf.finish_copy(tmp_path, item) is None
    offset = 0
    while offset < len(CONTENT):
        block = CONTENT[offset : offset + mf.BLOCK]
        chunk.write_bytes(block)
        offset = mf.append_chunk(tmp_path, item, chunk, offset, len(block))
    assert mf.finish_copy(tmp_path, item).read_bytes() == CONTENT


@pytest.mark.parametrize("copied", [0, 5])
def test_a_chunk_on_another_file_system_is_copied_by_hand(tmp_path, monkeypatch, copied):
    real, calls = os.copy_file_range, []

    def crossing(origin, target, _count):
        calls.append(origin)
        if copied and len(calls) == 1:
            return real(origin, target, copied)
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(mf.os, "copy_file_range", crossing)
    item = mf.parse_files([dict(HTTP, url=None, path="/c", sha256=DIGEST, bytes=len(CONTENT))])[0]
    (tmp_path / item.partial).write_bytes(CONTENT[:3])
    chunk = tmp_path / "chunk"
    chunk.write_bytes(CONTENT[3:])
    assert mf.append_chunk(tmp_path, item, chunk, 3, len(CONTENT) - 3) == len(CONTENT)
    assert mf.finish_copy(tmp_path, item).read_bytes() == CONTENT
    assert calls


def test_a_full_disk_is_no_reason_to_copy_by_hand(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mf.os, "copy_file_range", full)
    item = mf.parse_files([dict(HTTP, url=None, path="/c", bytes=3)])[0]
    chunk = tmp_path / "chunk"
    chunk.write_bytes(b"abc")
    with pytest.raises(OSError, match="No space left"):
        mf.append_chunk(tmp_path, item, chunk, 0, 3)
    assert (tmp_path / item.partial).read_bytes() == b""


def test_a_chunk_at_the_wrong_place_or_cut_short_on_its_way_is_refused(tmp_path):
    item = mf.parse_files([dict(HTTP, url=None, path="/c")])[0]
    chunk = tmp_path / "chunk"
    chunk.write_bytes(b"abc")
    with pytest.raises(mf.ModelFileError, match="has 0 bytes, but the chunk belongs at 7"):
        mf.append_chunk(tmp_path, item, chunk, 7, 3)
    with pytest.raises(mf.ModelFileError, match="arrived with 3 bytes, and 4 were sent"):
        mf.append_chunk(tmp_path, item, chunk, 0, 4)
    assert not (tmp_path / item.partial).exists()


def test_bytes_from_the_controller_that_are_not_of_the_digest_are_refused_and_not_kept(tmp_path):
    item = mf.parse_files([dict(HTTP, url=None, path="/c", bytes=3)])[0]
    (tmp_path / item.partial).write_bytes(b"abc")
    with pytest.raises(mf.Refused, match=r"sha256 of what was sent of /c .*inventory says a{64}") as refused:
        mf.finish_copy(tmp_path, item)
    assert refused.value.name == item.name
    assert not (tmp_path / item.partial).exists()


@pytest.mark.parametrize(
    ("entry", "there", "short"),
    [
        ({"url": None, "path": "/c", "bytes": 9}, {}, True),
        # a download, whatever its size
        ({}, {}, False),
        # its bytes have to be read: what is there of a name, and a partial file that may be whole
        ({"url": None, "path": "/c", "bytes": 9}, {"name": 9}, False),
        ({"url": None, "path": "/c", "bytes": 9}, {"partial": 9}, False),
        ({"url": None, "path": "/c", "bytes": 9}, {"partial": 8}, True),
    ],
)
def test_what_takes_a_moment(tmp_path, monkeypatch, entry, there, short):
    monkeypatch.setattr(mf, "AT_ONCE", 8)
    item = mf.parse_files([{**HTTP, **entry}])[0]
    for attribute, size in there.items():
        (tmp_path / getattr(item, attribute)).write_bytes(bytes(size))
    states = {item.name: mf.state_of(tmp_path, item, mf.Record(tmp_path))}
    assert mf.is_short(tmp_path, [item], states) is short
    assert mf.is_short(tmp_path, [item], {item.name: "present"}) is True


def test_progress_is_written_once_a_second_and_removed(tmp_path):
    now = [0.0]
    progress = mf.Progress(tmp_path, clock=lambda: now[0])
    progress("fetch", "a", 0, 100)
    now[0] = 0.5
    progress("fetch", "a", 50, 100)
    assert mf.json.loads(progress.path.read_text())["done"] == 0
    now[0] = 2.0
    progress("fetch", "a", 60, 100)
    state = mf.json.loads(progress.path.read_text())
    assert (state["done"], state["total"], state["rate"]) == (60, 100, 30.0)
    progress.close()
    assert not progress.path.exists()


def test_nothing_of_ansible_is_needed():
    text = Path(mf.__file__).read_text(encoding="utf-8")
    assert "import ansible" not in text
    assert "from ansible" not in text


def test_a_version_survives_what_comes_under_its_name(tmp_path):
    old, new = "a" * 64, "b" * 64
    (tmp_path / "m.gguf").write_bytes(b"old")
    path = mf.version_path(tmp_path, "m.gguf", old)
    assert mf.keep_version(tmp_path, "m.gguf", path)
    assert not mf.keep_version(tmp_path, "m.gguf", path)
    (tmp_path / "n").write_bytes(b"new")
    (tmp_path / "n").replace(tmp_path / "m.gguf")
    assert path.read_bytes() == b"old"
    other = mf.version_path(tmp_path, "m.gguf", new)
    assert mf.keep_version(tmp_path, "m.gguf", other)
    assert mf.forget_versions(tmp_path, {other}) == [path]
    assert not path.parent.exists()
    assert other.read_bytes() == b"new"
    assert mf.forget_versions(tmp_path, set()) == [other]
    assert not (tmp_path / mf.VERSIONS).exists()
    assert (tmp_path / "m.gguf").read_bytes() == b"new"


def test_pieces_of_a_split_model_and_files_of_unknown_digest_keep_their_names(tmp_path):
    assert mf.version_path(tmp_path, "m-00001-of-00002.gguf", "a" * 64) == tmp_path / "m-00001-of-00002.gguf"
    assert mf.version_path(tmp_path, "m.gguf", "") == tmp_path / "m.gguf"
