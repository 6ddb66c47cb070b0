# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the bytes of a GGUF header come from: a file, or an HTTP server by ranges. Private to the collection.

The HTTP side has no Ansible in it: the caller passes an C{opener}, which sends one GET and follows no redirect.
Redirects are followed here, because a token may only go to the server that it was given for.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from http.client import HTTPException
from typing import Any, Callable, Protocol
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _gguf
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gguf import GgufError
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gguf_types import DEFAULT_BUILD, build_of

# No more than this is read beyond the bytes that are sure to belong to the header.
BLOCK = 1024 * 1024
# The first request of a remote file: small headers end in it, and it shows how large the vocabulary is.
FIRST_STEP = 512 * 1024
MAX_REDIRECTS = 5
HUGGING_FACE = "https://huggingface.co"
# Servers that ignore Range are read from the start up to the header's end; this is one read of such a stream.
STREAM_STEP = 64 * 1024

_SPLIT = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.DOTALL)
_HUGGING_FACE = re.compile(r"^hf:(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+)/(?P<file>[^@]+)(?:@(?P<revision>.+))?$")


class SourceError(GgufError):
    """The file cannot be reached or read."""


class Response(Protocol):
    """What an opener returns; http.client.HTTPResponse and urllib's errors are such."""

    @property
    def status(self) -> int | None: ...

    @property
    def headers(self) -> Any: ...

    def read(self, amount: int) -> bytes: ...

    def close(self) -> None: ...


Opener = Callable[[str, "dict[str, str]"], Response]


class FileSource:
    """A file on this machine."""

    def __init__(self, path: str) -> None:
        self.name = path
        try:
            # Not blocking, so that a named pipe is refused below instead of waited for.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise SourceError(f"{path}: not a regular file")
        self.size: int | None = status.st_size
        self.requests = 0
        self.transferred_bytes = 0

    def read(self, start: int, needed: int, likely: int, sure: int) -> bytes:
        try:
            data = os.pread(self._descriptor, max(needed, min(likely, sure + BLOCK, BLOCK)), start)
        except OSError as error:
            raise SourceError(f"{self.name}: {error.strerror}") from error
        self.requests += 1
        self.transferred_bytes += len(data)
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def public_url(url: str) -> str:
    """A URL fit for messages: without user, password, query and fragment, where secrets and signatures stand."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_url(url: str, token: str | None) -> None:
    """Refuse what could not work or would give the token away."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SourceError(f"the url is malformed: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise SourceError(f"the url's scheme is {parts.scheme or 'missing'}, but must be http, https or hf")
    if not parts.hostname or port == 0:
        raise SourceError("the url has no host")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise SourceError("the url has spaces or control characters; write them as %XX")
    if token is None:
        return
    if parts.username is not None:
        raise SourceError("the url has a user and there is a token; a request can carry one of the two")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise SourceError("the token is empty or has spaces, control or non-ASCII characters")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise SourceError("a token over http could be read on the way; use https")


def resolve_reference(reference: str, endpoint: str = HUGGING_FACE) -> str:
    """The address of C{hf:OWNER/REPO/FILE[@REVISION]}; other references are addresses already."""
    if not reference.startswith("hf:"):
        return reference
    match = _HUGGING_FACE.match(reference)
    if match is None:
        raise SourceError(f"{reference!r} is not of the form hf:OWNER/REPO/FILE or hf:OWNER/REPO/FILE@REVISION")
    file = quote(match["file"])
    revision = quote(match["revision"] or "main", safe="")
    return f"{endpoint.rstrip('/')}/{match['owner']}/{match['repo']}/resolve/{revision}/{file}"


def _reason(error: BaseException) -> str:
    """Why a request failed, without the address that the texts of urllib's errors may carry with its signature."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _reason(reason)
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(reason or getattr(error, "strerror", None) or type(error).__name__)


class HttpSource:
    """A file on a server, read by a handful of bounded ranges."""

    def __init__(self, opener: Opener, url: str, token: str | None = None) -> None:
        check_url(url, token)
        self.name = public_url(url)
        self.size: int | None = None
        self.etag: str | None = None
        self.revision: str | None = None
        self.requests = 0
        self.transferred_bytes = 0
        self._opener = opener
        self._url = url
        self._token = token
        self._address = url
        self._stream: Response | None = None
        self._stream_at = 0
        self._seen_etag: str | None = None

    def read(self, start: int, needed: int, likely: int, sure: int) -> bytes:
        if self._stream is None:
            # Never more than BLOCK beyond what the header is sure to have; and no request for a few bytes only.
            wanted = FIRST_STEP if start == 0 else max(needed, min(max(likely, FIRST_STEP), sure + BLOCK))
            if self.size is not None:
                wanted = min(wanted, self.size - start)
            if wanted <= 0:
                return b""
            data = self._range(start, max(wanted, 1))
            if data is not None:
                return data
        return self._from_stream(start, needed)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _get(self, headers: dict[str, str]) -> Response:
        """One GET, redirects followed; the token goes to no other origin than the first."""
        address = self._address
        for _skipped in range(MAX_REDIRECTS + 1):
            sent = {"Accept-Encoding": "identity", **headers}
            if self._token is not None and _origin(address) == _origin(self._url):
                sent["Authorization"] = f"Bearer {self._token}"
            self.requests += 1
            try:
                response = self._opener(address, sent)
            except (OSError, HTTPException) as error:
                raise SourceError(f"{public_url(address)}: {_reason(error)}") from None
            if response.status not in (301, 302, 303, 307, 308):
                self._address = address
                return response
            self._note(response)
            target = response.headers.get("Location")
            response.close()
            if not target:
                raise SourceError(f"{public_url(address)}: redirect without a Location")
            following = urljoin(address, target)
            check_url(following, None)
            if urlsplit(address).scheme == "https" and urlsplit(following).scheme != "https":
                raise SourceError(f"{public_url(address)}: redirects from https to {public_url(following)}")
            address = following
        raise SourceError(f"{self.name}: more than {MAX_REDIRECTS} redirects")

    def _note(self, response: Response) -> None:
        """What Hugging Face says of a file beside its redirect: its sha256 and its commit."""
        linked = response.headers.get("X-Linked-ETag")
        if linked and self.etag is None:
            self.etag = linked.strip('"')
        self.revision = response.headers.get("X-Repo-Commit") or self.revision

    def _range(self, start: int, count: int) -> bytes | None:
        """The bytes asked for (fewer at the end of the file); None where the server sends the whole file instead."""
        headers = {"Range": f"bytes={start}-{start + count - 1}"}
        response = self._get(headers)
        if response.status in (401, 403, 404, 410) and self._address != self._url:
            # A signed address has run out: ask for a new one, once.
            response.close()
            self._address = self._url
            response = self._get(headers)
        try:
            if response.status == 206:
                return self._partial(response, start, count)
            if response.status == 416:
                total = self._total(response.headers.get("Content-Range", ""), r"bytes \*/(\d+)")
                raise SourceError(f"{self.name}: has {total} bytes, but its header goes on beyond byte {start}")
            if response.status != 200:
                raise SourceError(self._refusal(response.status))
            self._check_same(response)
        except BaseException:
            response.close()
            raise
        self.size = self._length(response)
        self._stream = response
        self._stream_at = 0
        return None

    def _partial(self, response: Response, start: int, count: int) -> bytes:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if found is None or int(found[1]) != start or not start <= int(found[2]) < start + count:
            raise SourceError(
                f"{self.name}: asked for {count} bytes from {start} on, the server answered with"
                f" Content-Range {response.headers.get('Content-Range')!r}"
            )
        self._check_same(response)
        length = int(found[2]) - start + 1
        total = None if found[3] == "*" else int(found[3])
        if self.size is not None and total is not None and total != self.size:
            raise SourceError(f"{self.name}: changed while it was read, from {self.size} to {total} bytes")
        self.size = total if total is not None else self.size
        data = self._read_exactly(response, length)
        response.close()
        if len(data) < length:
            raise SourceError(f"{self.name}: the connection ended after {len(data)} of {length} bytes from {start} on")
        return data

    def _check_same(self, response: Response) -> None:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding not in ("identity", ""):
            raise SourceError(
                f"{self.name}: the server sends Content-Encoding {encoding} though identity was asked for"
            )
        etag = response.headers.get("ETag")
        self._note(response)
        if etag is None:
            return
        etag = etag.strip('"')
        if self._seen_etag is not None and etag != self._seen_etag:
            raise SourceError(f"{self.name}: changed while it was read (ETag {self._seen_etag} became {etag})")
        self._seen_etag = etag
        self.etag = self.etag or etag

    @staticmethod
    def _total(text: str, pattern: str) -> str:
        found = re.search(pattern, text)
        return found[1] if found else "fewer"

    @staticmethod
    def _length(response: Response) -> int | None:
        text = response.headers.get("Content-Length", "")
        return int(text) if re.fullmatch(r"\d{1,18}", text) else None

    def _refusal(self, status: int | None) -> str:
        hints = {
            401: "the server wants a token (option token)" if self._token is None else "the token is not accepted",
            403: "access is refused; a gated model needs its terms accepted and a token of that account",
            404: "there is no such file, or it is private and needs a token",
        }
        hint = hints.get(status or 0)
        return f"{self.name}: HTTP status {status}" + (f": {hint}" if hint else "")

    def _read_exactly(self, response: Response, count: int) -> bytes:
        chunks = []
        left = count
        while left > 0:
            try:
                chunk = response.read(min(left, STREAM_STEP * 16))
            except (OSError, HTTPException) as error:
                raise SourceError(f"{self.name}: {_reason(error)} while reading") from None
            if not chunk:
                break
            chunks.append(chunk)
            left -= len(chunk)
            self.transferred_bytes += len(chunk)
        return b"".join(chunks)

    def _from_stream(self, start: int, needed: int) -> bytes:
        """Read on in the answer of a server that ignores Range; what lies before C{start} has been read already."""
        if self._stream is None:
            raise SourceError(f"{self.name}: the stream is closed")
        while self._stream_at < start:
            skipped = self._read_exactly(self._stream, min(start - self._stream_at, STREAM_STEP))
            if not skipped:
                return b""
            self._stream_at += len(skipped)
        data = self._read_exactly(self._stream, max(needed, STREAM_STEP))
        self._stream_at += len(data)
        return data


class JoinedSource:
    """Pieces that make one file when they are put one after the other; each has to know its size."""

    def __init__(self, name: str, pieces: list[Any], sizes: list[int]) -> None:
        self.name = name
        self.size: int | None = sum(sizes)
        self._pieces = pieces
        self._sizes = sizes

    @property
    def requests(self) -> int:
        return sum(piece.requests for piece in self._pieces)

    @property
    def transferred_bytes(self) -> int:
        return sum(piece.transferred_bytes for piece in self._pieces)

    def read(self, start: int, needed: int, likely: int, sure: int) -> bytes:
        for piece, size in zip(self._pieces, self._sizes):
            if start < size:
                rest = size - start
                data: bytes = piece.read(start, min(needed, rest), min(likely, rest), min(sure, rest))
                return data[:rest]
            start -= size
        return b""

    def close(self) -> None:
        for piece in self._pieces:
            piece.close()


def part_names(name: str) -> list[str]:
    """All files of the model that a file belongs to: C{x-00001-of-00003.gguf} and its sisters, or itself alone."""
    match = _SPLIT.match(name)
    if match is None:
        return [name]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count:
        raise SourceError(f"{name}: part {int(match['number'])} of {count} cannot be")
    if count > 1000:
        raise SourceError(f"{name}: {count} parts are more than the 1000 that are read")
    return [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, count + 1)]


def part_urls(url: str) -> list[str]:
    """As L{part_names}, for the path of a URL; its query stays."""
    parts = urlsplit(url)
    return [urlunsplit(parts._replace(path=path)) for path in part_names(parts.path)]


def read_parts(sources: list[Any]) -> list[_gguf.Part]:
    """The headers of a model's files, in order, each checked to be the part that its name says."""
    parts = []
    for number, source in enumerate(sources):
        try:
            header = _gguf.read_header(source)
        finally:
            source.close()
        said = header.metadata.get("split.count")
        if len(sources) > 1 and (said != len(sources) or header.metadata.get("split.no") != number):
            raise SourceError(
                f"{source.name}: by its name it is part {number} (from 0) of {len(sources)}, but its header says"
                f" split.no {header.metadata.get('split.no')!r} of split.count {said!r}"
            )
        if len(sources) == 1 and isinstance(said, int) and said > 1:
            raise SourceError(
                f"{source.name}: its header says that it is one of {said} files; name it as llama.cpp does,"
                f" NAME-00001-of-{said:05d}.gguf, so that the others can be found"
            )
        parts.append(_gguf.Part(source.name, header, source.size))
    return parts


def read_model(
    path: str | None = None,
    url: str | None = None,
    *,
    token: str | None = None,
    opener: Opener | None = None,
    endpoint: str = HUGGING_FACE,
    build: str = DEFAULT_BUILD,
) -> dict[str, Any]:
    """What the module gguf_info returns, of a file here (C{path}) or on a server (C{url}, with an C{opener})."""
    build_of(build)
    sources: list[Any]
    if path is not None:
        sources = [FileSource(name) for name in part_names(path)]
        origin: dict[str, Any] = {"path": path}
    else:
        if url is None or opener is None:
            raise SourceError("neither a path nor a url with an opener is given")
        address = resolve_reference(url, endpoint)
        check_url(address, token)
        sources = [HttpSource(opener, part, token) for part in part_urls(address)]
        origin = {"url": public_url(address)}
    try:
        result = _gguf.describe(read_parts(sources), build)
    finally:
        for source in sources:
            source.close()
    origin["requests"] = sum(source.requests for source in sources)
    origin["transferred_bytes"] = sum(source.transferred_bytes for source in sources)
    if url is not None and path is None:
        origin["etag"] = sources[0].etag
        origin["revision"] = sources[0].revision
    result["source"] = origin
    return result
