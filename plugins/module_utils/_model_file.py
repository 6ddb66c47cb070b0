# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Getting large files whole: resumed, checked while they stream, renamed only when right.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

BLOCK = 1 << 20
HF_ENDPOINT = "https://huggingface.co"
PARTIAL = ".partial"
LOCK_NAME = ".lock"
RECORD_NAME = ".verified.json"
PROGRESS_NAME = ".progress.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HF = re.compile(
    r"hf:(?P<owner>[A-Za-z0-9][A-Za-z0-9._-]*)/(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]*)"
    r"/(?P<file>[^@?#]+?)(?:@(?P<revision>[A-Za-z0-9._/-]+))?"
)


class ModelFileError(Exception):
    """A file cannot be brought to the state asked for; the text says which, why, and what would be right."""


class Held(ModelFileError):
    """Another run works in the directory."""


class Refused(ModelFileError):
    """The bytes that came from the controller are not those of the digest."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Source(NamedTuple):
    """Where the bytes of one piece come from: an address, or a path on the controller."""

    url: str | None
    path: str | None
    sha256: str | None
    size: int | None
    token: str | None


class Wanted(NamedTuple):
    """One file as the inventory asks for it; more than one source means that they are joined in order."""

    name: str
    sha256: str
    size: int | None
    sources: tuple[Source, ...]

    @property
    def partial(self) -> str:
        """The name while incomplete. It carries the digest, so a changed one never goes on from other bytes."""
        return f"{self.name}.{self.sha256[:16]}{PARTIAL}"

    @property
    def from_controller(self) -> bool:
        return self.sources[0].path is not None


def human(count: int) -> str:
    """Bytes for a person, beside the exact figure."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def hf_url(address: str, endpoint: str = HF_ENDPOINT) -> str:
    """Turn hf:OWNER/REPO/FILE[@REVISION] into the address that serves the file."""
    match = _HF.fullmatch(address)
    if match is None or ".." in match["file"].split("/"):
        raise ModelFileError(f"{address!r} is not of the form hf:OWNER/REPO/FILE[@REVISION]")
    revision = urllib.parse.quote(match["revision"] or "main", safe="")
    name = urllib.parse.quote(match["file"])
    return f"{endpoint.rstrip('/')}/{match['owner']}/{match['repo']}/resolve/{revision}/{name}"


def shown(url: str) -> str:
    """An address without user, password and query, which may carry secrets (signed addresses do)."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    return f"{parts.scheme}://{host}{':' + str(parts.port) if parts.port else ''}{parts.path}"


def _digest_of(what: str, value: Any) -> str:
    text = str(value or "").strip().lower()
    if text.startswith("sha256:"):
        text = text[7:]
    if not _SHA256.fullmatch(text):
        raise ModelFileError(f"{what}: sha256 is {str(value)!r}, but must be the 64 hexadecimal digits of the file")
    return text


def _source(what: str, entry: dict[str, Any], hf_endpoint: str, hf_token: str | None) -> Source:
    url, path = entry.get("url") or None, entry.get("path") or None
    if (url is None) == (path is None):
        given = "both" if url else "neither"
        raise ModelFileError(f"{what}: give either url or path (a file on the controller), not {given}")
    token = entry.get("token") or None
    if path is not None and not Path(path).is_absolute():
        raise ModelFileError(f"{what}: path {path!r} is not absolute; write it from / on")
    if url is not None:
        if url.startswith("hf:"):
            url = hf_url(url, hf_endpoint)
            token = token or hf_token
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ModelFileError(f"{what}: url {shown(url)!r} must begin with https://, http:// or hf:")
        if urllib.parse.urlsplit(url).username:
            raise ModelFileError(f"{what}: {shown(url)} carries a user name; give credentials as token instead")
        if token and urllib.parse.urlsplit(url).scheme != "https" and not _is_loopback(url):
            raise ModelFileError(f"{what}: a token would cross the network in clear text to {shown(url)}; use https")
    size = entry.get("bytes")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ModelFileError(f"{what}: bytes is {size!r}, but must be a whole number of at least 1")
    return Source(url, path, None, size, token)


def _is_loopback(url: str) -> bool:
    return (urllib.parse.urlsplit(url).hostname or "") in ("127.0.0.1", "::1", "localhost")


def parse_files(
    entries: list[dict[str, Any]], hf_endpoint: str = HF_ENDPOINT, hf_token: str | None = None
) -> list[Wanted]:
    """Check the whole list and return it as the pieces below understand it."""
    wanted: list[Wanted] = []
    seen: set[str] = set()
    for entry in entries:
        name = str(entry.get("name") or "")
        if not _NAME.fullmatch(name) or name.endswith(PARTIAL):
            raise ModelFileError(
                f"model file name {name!r}: use letters, digits and . _ + - (no folder, no leading dot, "
                f"not ending in {PARTIAL}), for example gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf"
            )
        if name in seen:
            raise ModelFileError(f"model file {name!r} is listed twice; each name may stand once")
        seen.add(name)
        digest = _digest_of(f"model file {name!r}", entry.get("sha256"))
        parts = entry.get("parts") or []
        size = entry.get("bytes")
        if parts:
            if entry.get("url") or entry.get("path"):
                raise ModelFileError(f"model file {name!r}: parts stands beside url or path; give one of them")
            sources = []
            for index, part in enumerate(parts, start=1):
                what = f"model file {name!r}, part {index}"
                source = _source(what, part, hf_endpoint, hf_token)
                if source.url is not None and source.size is None:
                    raise ModelFileError(
                        f"{what}: a part from a url needs bytes, so that a download can go on inside it"
                    )
                sources.append(source._replace(sha256=_digest_of(what, part.get("sha256"))))
            kinds = {source.path is None for source in sources}
            if len(kinds) > 1:
                raise ModelFileError(f"model file {name!r}: its parts are partly url and partly path; use one kind")
            sizes = [source.size for source in sources]
            if all(sizes):
                total = sum(value for value in sizes if value is not None)
                if size is not None and size != total:
                    raise ModelFileError(f"model file {name!r}: bytes is {size}, but its parts add up to {total}")
                size = total
            wanted.append(Wanted(name, digest, size, tuple(sources)))
        else:
            source = _source(f"model file {name!r}", entry, hf_endpoint, hf_token)
            wanted.append(Wanted(name, digest, source.size, (source,)))
    return wanted


# -- what is on the disk ----------------------------------------------------------------------------------------------


class Record:
    """Which files were hashed, and how they looked then: a 17 GB file is not read again on each run."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / RECORD_NAME
        self.entries: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(loaded, dict):
                self.entries = {key: value for key, value in loaded.items() if isinstance(value, dict)}

    def digest(self, path: Path) -> str | None:
        """The digest of the file, if it looks as it did when it was hashed."""
        known = self.entries.get(path.name)
        if known is None:
            return None
        try:
            status = path.lstat()
        except OSError:
            return None
        if known.get("size") != status.st_size or known.get("mtime_ns") != status.st_mtime_ns:
            return None
        digest = known.get("sha256")
        return digest if isinstance(digest, str) else None

    def note(self, path: Path, digest: str) -> None:
        status = path.lstat()
        self.entries[path.name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
        self.save()

    def forget(self, name: str) -> None:
        if self.entries.pop(name, None) is not None:
            self.save()

    def save(self) -> None:
        write_atomically(self.path, json.dumps(self.entries, indent=1, sort_keys=True) + "\n")


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def partial_files(directory: Path, wanted: list[Wanted]) -> list[str]:
    """Partial files that belong to no listed file (or to another digest of one)."""
    keep = {item.partial for item in wanted}
    try:
        names = sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []
    return [name for name in names if name.endswith(PARTIAL) and name not in keep]


def prunable(directory: Path, wanted: list[Wanted], record: Record) -> list[str]:
    """Files that this collection placed and that nobody lists any more. Files put there by hand are left."""
    keep = {item.name for item in wanted}
    return sorted(name for name in record.entries if name not in keep and (directory / name).is_file())


def state_of(directory: Path, item: Wanted, record: Record, always: bool = False) -> str:
    """One of present, unverified (its bytes have to be read), changed (other bytes are known) and absent."""
    path = directory / item.name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ModelFileError(f"{path} exists but is not a regular file; move it away, this path is for the model file")
    if not path.exists():
        return "absent"
    if item.size is not None and path.stat().st_size != item.size:
        return "changed"
    digest = record.digest(path)
    if digest is None or always:
        return "unverified"
    return "present" if digest == item.sha256 else "changed"


def space_needed(directory: Path, items: list[Wanted]) -> int:
    """Bytes still to be written for these files; unknown sizes count as nothing and are checked on arrival."""
    needed = 0
    for item in items:
        if item.size is not None:
            partial = directory / item.partial
            needed += max(0, item.size - (partial.stat().st_size if partial.is_file() else 0))
    return needed


def check_space(directory: Path, what: str, needed: int, reserve: int, free: int | None = None) -> None:
    """Refuse before the first byte is written, with the figures."""
    if needed <= 0:
        return
    if free is None:
        existing = directory
        while not existing.exists():
            existing = existing.parent
        status = os.statvfs(existing)
        free = status.f_bavail * status.f_frsize
    if needed + reserve > free:
        raise ModelFileError(
            f"no space for {what} in {directory}: {needed} bytes ({human(needed)}) are to be written and "
            f"{human(reserve)} kept free, but only {free} bytes ({human(free)}) are available; "
            f"free {human(needed + reserve - free)} more or choose a directory on another file system"
        )


class Progress:
    """Says in a small file how far the work is, at most once a second."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = directory / PROGRESS_NAME
        self.clock = clock
        self.last = float("-inf")
        self.started: tuple[str, str, float, int] | None = None

    def __call__(self, phase: str, name: str, done: int, total: int | None) -> None:
        now = self.clock()
        if self.started is None or self.started[:2] != (phase, name):
            self.started = (phase, name, now, done)
            self.last = float("-inf")
        if now - self.last < 1:
            return
        self.last = now
        elapsed = now - self.started[2]
        rate = (done - self.started[3]) / elapsed if elapsed > 0 else 0.0
        state = {"phase": phase, "name": name, "done": done, "total": total, "rate": rate, "pid": os.getpid()}
        # Progress is a courtesy: a full disk must fail on the file that matters, with its own message.
        with contextlib.suppress(OSError):
            write_atomically(self.path, json.dumps(state))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()


def quiet(phase: str, name: str, done: int, total: int | None) -> None:
    """A progress that says nothing."""


Report = Callable[[str, str, int, "int | None"], None]


@contextlib.contextmanager
def locked(directory: Path, timeout: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold the directory's lock. It belongs to the process, so a killed run leaves none behind."""
    path = directory / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        waited = 0.0
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                if waited >= timeout:
                    holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
                    raise Held(
                        f"another run (process {holder}) holds {path} for more than {timeout:g} s; wait for it to end"
                    ) from exc
            sleep(0.5)
            waited += 0.5
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


def hash_file(
    path: Path,
    report: Report = quiet,
    phase: str = "verify",
    limit: int | None = None,
    digest: Any = None,
    start: int = 0,
) -> Any:
    """Feed the bytes of the file from start to limit to a digest and return it."""
    digest = hashlib.sha256() if digest is None else digest
    total = path.stat().st_size if limit is None else limit
    done = start
    with path.open("rb") as handle:
        handle.seek(start)
        while done < total:
            block = handle.read(min(BLOCK, total - done))
            if not block:
                break
            digest.update(block)
            done += len(block)
            report(phase, path.name, done, total)
    return digest


# -- over the network -------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but let no credential cross to another origin and no scheme but http(s) in."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is None:
            return None
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https"):
            raise ModelFileError(f"{shown(req.full_url)} redirects to {shown(newurl)}, which is not http or https")
        if old.scheme == "https" and new.scheme == "http":
            raise ModelFileError(f"{shown(req.full_url)} redirects from https to clear text at {shown(newurl)}")
        if (old.scheme, old.hostname, old.port) != (new.scheme, new.hostname, new.port):
            request.headers.pop("Authorization", None)
        return request


def _opener() -> urllib.request.OpenerDirector:
    # No file:, ftp: or data: handler: an address can only be fetched over HTTP.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


class _Cut(Exception):
    """The connection ended early; what arrived is kept and the rest asked for again."""


_CONTENT_RANGE = re.compile(r"bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)")
# Statuses that a later try may not meet: time-outs, too many requests, a server in trouble.
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


def _fetch_once(
    source: Source,
    partial: Path,
    base: int,
    digest: Any,
    report: Report,
    timeout: float,
    before_write: Callable[[int], None],
    name: str,
) -> Any:
    """Bring the piece that begins at `base` of the partial file to its end; return the digest of the piece."""
    if source.url is None:
        raise AssertionError("only an address can be fetched")
    have = partial.stat().st_size - base
    headers = {"Accept-Encoding": "identity", "User-Agent": "llamafleet.turboquant"}
    if source.token:
        headers["Authorization"] = f"Bearer {source.token}"
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(source.url, headers=headers)
    try:
        response = _opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code == 416 and have:
            match = _CONTENT_RANGE.search(exc.headers.get("Content-Range", ""))
            if match and match[3] == str(have):
                return digest  # the piece was complete already; its digest decides
            _truncate(partial, base)
            raise _Cut(f"the server has no byte {have}, so the piece starts over") from exc
        if exc.code in _TRANSIENT:
            raise _Cut(f"HTTP status {exc.code}") from exc
        hint = {
            401: "; the address wants a token",
            403: "; the token may lack access (a gated repository's licence must be accepted first)",
            404: "; check the address",
        }.get(exc.code, "")
        raise ModelFileError(f"{shown(source.url)} answered HTTP status {exc.code}{hint}") from exc
    except (urllib.error.URLError, http.client.HTTPException, OSError) as exc:
        raise _Cut(str(getattr(exc, "reason", exc))) from exc

    with contextlib.closing(response):
        length = response.headers.get("Content-Length")
        rest = int(length) if length is not None and length.isdigit() else None
        if have and response.status == 206:
            match = _CONTENT_RANGE.search(response.headers.get("Content-Range", ""))
            if match is None or match[1] != str(have):
                _truncate(partial, base)
                raise _Cut("the server answered with another range than the one asked for")
        elif have:
            # 200: the server ignored the range and sends the whole piece, which must not be appended.
            _truncate(partial, base)
            have = 0
            digest = hashlib.sha256()
        total = None if rest is None else have + rest
        if source.size is not None and total is not None and total != source.size:
            raise ModelFileError(
                f"{shown(source.url)} offers {total} bytes, but bytes says {source.size}; "
                "the file behind the address is another one, or bytes is wrong"
            )
        total = source.size if total is None else total
        if rest is not None:
            before_write(rest)
        with partial.open("ab") as handle:
            while True:
                try:
                    block = response.read(BLOCK)
                except (http.client.HTTPException, OSError) as exc:
                    handle.flush()
                    raise _Cut(str(exc) or type(exc).__name__) from exc
                if not block:
                    break
                have += len(block)
                if total is not None and have > total:
                    raise ModelFileError(f"{shown(source.url)} sends more than the {total} bytes it should have")
                handle.write(block)
                digest.update(block)
                report("fetch", name, base + have, None if total is None else base + total)
            handle.flush()
            os.fsync(handle.fileno())
    if total is not None and have < total:
        raise _Cut(f"{have} of {total} bytes arrived")
    return digest


def _truncate(path: Path, size: int) -> None:
    with path.open("r+b") as handle:
        handle.truncate(size)


def fetch(
    directory: Path,
    item: Wanted,
    report: Report = quiet,
    timeout: float = 60,
    retries: int = 5,
    reserve: int = 0,
    sleep: Callable[[float], None] = time.sleep,
    free: Callable[[], int] | None = None,
) -> Path:
    """Download the file's pieces into its partial file and return that, its digest checked."""
    partial = directory / item.partial
    partial.touch(mode=0o644)
    whole = hashlib.sha256()
    base = 0

    def before_write(rest: int) -> None:
        check_space(directory, item.name, rest, reserve, None if free is None else free())

    for index, source in enumerate(item.sources, start=1):
        what = f"{item.name}" if len(item.sources) == 1 else f"{item.name}, part {index} of {len(item.sources)}"
        later = partial.stat().st_size - base
        piece_known = source.size is not None and later >= source.size
        if piece_known and source.size is not None:
            digest = hash_file(partial, report, "resume", base + source.size, start=base)
        else:
            digest = hash_file(partial, report, "resume", start=base)
            digest = _fetch_with_retries(
                source, partial, base, digest, report, timeout, retries, sleep, before_write, item.name, what
            )
        end = base + source.size if source.size is not None else partial.stat().st_size
        expected = source.sha256 or item.sha256
        if digest.hexdigest() != expected:
            # Keeping the wrong bytes would make each later run resume into the same failure.
            if len(item.sources) == 1:
                partial.unlink()
            else:
                _truncate(partial, base)
            raise ModelFileError(
                f"{what}: sha256 of what {shown(source.url or '')} serves is {digest.hexdigest()} "
                f"({end - base} bytes), but the inventory says {expected}; the file there or the digest is wrong"
            )
        if len(item.sources) == 1:
            whole = digest
        else:
            hash_file(partial, report, "verify", end, whole, base)
        base = end
    if partial.stat().st_size > base:
        _truncate(partial, base)
    if whole.hexdigest() != item.sha256:
        partial.unlink()
        raise ModelFileError(
            f"{item.name}: each part is right, but joined their sha256 is {whole.hexdigest()}, not {item.sha256}; "
            "check the order of the parts and the digest of the whole"
        )
    return partial


def _fetch_with_retries(
    source: Source,
    partial: Path,
    base: int,
    digest: Any,
    report: Report,
    timeout: float,
    retries: int,
    sleep: Callable[[float], None],
    before_write: Callable[[int], None],
    name: str,
    what: str,
) -> Any:
    failures = 0
    while True:
        before = partial.stat().st_size
        try:
            return _fetch_once(source, partial, base, digest, report, timeout, before_write, name)
        except _Cut as exc:
            now = partial.stat().st_size
            # A connection that brought bytes is not a failure in a row: slow links end well too.
            failures = 1 if now > before else failures + 1
            if failures > retries:
                done = now - base
                raise ModelFileError(
                    f"{what}: {shown(source.url or '')} was cut short {failures} times in a row without a new byte "
                    f"({exc}); {done} bytes are kept and the next run goes on from there"
                ) from exc
            report("retry", name, now, None)
            sleep(min(30.0, 0.5 * 2**failures))
            digest = hash_file(partial, start=base)


def place(directory: Path, item: Wanted, partial: Path, record: Record) -> None:
    """Give the checked file its name; until here the old one, if any, stands untouched."""
    target = directory / item.name
    partial.chmod(0o644)
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    # A record of the old bytes must not vouch for the new ones, should the power fail in between.
    record.forget(item.name)
    partial.replace(target)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    record.note(target, item.sha256)


_SPLIT = re.compile(r".*-\d{5}-of-\d{5}\.gguf")
VERSIONS = ".versions"


def version_path(directory: Path, name: str, sha256: str) -> Path:
    """Where the bytes of one digest stay while an instance needs them, whatever is fetched under that name later.

    The pieces of a split model are found by the program beside the first, so they stay under their own names.
    """
    if not sha256 or _SPLIT.fullmatch(name):
        return directory / name
    return directory / VERSIONS / sha256.lower()[:16] / name


def keep_version(directory: Path, name: str, path: Path) -> bool:
    """Make path another name of the file; say whether that was to be done. It costs no space."""
    origin = directory / name
    if path == origin or (path.exists() and path.samefile(origin)):
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    os.link(origin, temporary)
    temporary.replace(path)
    return True


def forget_versions(directory: Path, needed: set[Path]) -> list[Path]:
    """Remove the versions that nothing needs any more, and return them."""
    gone = [path for path in sorted((directory / VERSIONS).glob("*/*")) if path not in needed]
    for path in gone:
        path.unlink()
    for folder in (*(path.parent for path in gone), directory / VERSIONS):
        with contextlib.suppress(OSError):
            folder.rmdir()
    return gone


def copy_bytes(origin: int, target: int, count: int) -> int:
    """Copy up to count bytes from where one open file stands to where another does; return how many there were.

    The kernel does it, and where the file system can share them (btrfs, XFS) no byte is moved.
    """
    left = count
    try:
        while left > 0:
            copied = os.copy_file_range(origin, target, left)
            if copied == 0:
                return count - left
            left -= copied
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    # Two file systems, or one that cannot: by hand, from where that stopped.
    while left > 0:
        block = os.read(origin, min(BLOCK, left))
        if not block:
            break
        left -= len(block)
        while block:
            block = block[os.write(target, block) :]
    return count - left


def append_chunk(directory: Path, item: Wanted, chunk: Path, offset: int, size: int) -> int:
    """Add a chunk that came from the controller; return the partial file's new size.

    Its bytes are not looked at here: finish_copy reads all of them once, and nothing is placed before that. Nothing is
    forced to the disk either. What a power failure takes is asked for again, and place() forces the whole file.
    """
    partial = directory / item.partial
    have = partial.stat().st_size if partial.exists() else 0
    if have != offset:
        raise ModelFileError(f"{partial} has {have} bytes, but the chunk belongs at {offset}; another run writes it")
    arrived = chunk.stat().st_size
    if arrived != size:
        raise ModelFileError(
            f"the chunk of {item.name} at {offset} arrived with {arrived} bytes, and {size} were sent; run again, and "
            "it is sent again"
        )
    # Not opened for appending: the kernel's copying refuses that.
    with chunk.open("rb") as origin, os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as target:
        target.seek(offset)
        copy_bytes(origin.fileno(), target.fileno(), size)
    return partial.stat().st_size


# So much is read while somebody waits for the answer; more goes to the background, and how far it is gets shown.
AT_ONCE = 1 << 30


def is_short(directory: Path, wanted: list[Wanted], states: dict[str, str]) -> bool:
    """Say whether what is to be done now takes a moment: nothing to download, and not much to read."""
    to_read = 0
    for item in wanted:
        state = states[item.name]
        if state == "present":
            continue
        if not item.from_controller:
            return False
        if state == "unverified":
            to_read += (directory / item.name).stat().st_size
        else:
            partial = directory / item.partial
            size = partial.stat().st_size if partial.exists() else 0
            # One that is not whole yet is not read.
            to_read += size if size >= (item.size or 0) else 0
    return to_read <= AT_ONCE


def finish_copy(directory: Path, item: Wanted, report: Report = quiet) -> Path | None:
    """Return the partial file when it is whole and right, None when bytes are missing."""
    partial = directory / item.partial
    if not partial.exists() or (item.size is not None and partial.stat().st_size < item.size):
        return None
    digest = hash_file(partial, report).hexdigest()
    if digest != item.sha256:
        size = partial.stat().st_size
        partial.unlink()
        raise Refused(
            item.name,
            f"{item.name}: sha256 of what was sent of {item.sources[0].path} and its parts, if any, is {digest} "
            f"({size} bytes), but the inventory says {item.sha256}; nothing of it was kept",
        )
    return partial
