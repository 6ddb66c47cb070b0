# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The headers of the models that a plan needs: each read once and kept for the next plan. Private."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _gguf, _gguf_source
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gguf_source import (
    HUGGING_FACE,
    Opener,
    SourceError,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
# What is read of a model under a name that is not its own must not be found again under that name.
_NOT_KEPT = frozenset({"truncated", "size_differs", "digest_differs"})


class Headers:
    """From an entry of llama_model_files to what gguf_info says of it."""

    def __init__(self, folder: str, opener: Opener, say: Callable[[str], None], refresh: bool = False) -> None:
        self.folder = Path(folder)
        self.opener = opener
        self.say = say
        self.refresh = refresh
        self.read_now = 0
        self.found = 0

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The C{model} and C{checks} of an entry; raises ValueError where it cannot be read."""
        kept = self.folder / f"{self._key(entry)}.json.gz"
        if not self.refresh:
            result = self._load(kept)
            if result is not None:
                self.found += 1
                return result
        self.say(f"reading the header of {entry.get('name')}")
        result = self._read(entry)
        self.read_now += 1
        result["checks"] += self._differences(entry, result)
        if not any(check["code"] in _NOT_KEPT for check in result["checks"]):
            self._keep(kept, {"model": result["model"], "checks": result["checks"]})
        return result

    def _key(self, entry: Mapping[str, Any]) -> str:
        """A file's name for what an entry says: its sha256, else where it lies and which version of it."""
        digest = str(entry.get("sha256", "")).lower()
        if not _SHA256.fullmatch(digest):
            place: list[Any] = [entry.get("url"), entry.get("hf_endpoint"), entry.get("parts")]
            if entry.get("path"):
                path = Path(str(entry["path"]))
                status = path.stat() if path.is_file() else None
                place += [str(path), status.st_size if status else None, status.st_mtime_ns if status else None]
            digest = hashlib.sha256(json.dumps(place, sort_keys=True, default=str).encode()).hexdigest()
        return f"{digest}-{entry['build']}"

    @staticmethod
    def _load(kept: Path) -> dict[str, Any] | None:
        """What was kept; None where nothing was, or where it is damaged and has to be read again."""
        try:
            with gzip.open(kept, "rt", encoding="utf-8") as stream:
                result: Any = json.load(stream)
        except (OSError, EOFError, ValueError):
            return None
        model = result.get("model") if isinstance(result, dict) else None
        if not isinstance(model, dict) or not isinstance(result.get("checks"), list):
            return None
        if not isinstance(model.get("metadata"), dict) or not isinstance(model.get("tensors"), list):
            return None
        for name in ("architecture", "file_bytes", "header_bytes"):
            model.setdefault(name, None)
        return {"model": model, "checks": result["checks"]}

    def _keep(self, kept: Path, result: dict[str, Any]) -> None:
        """Put it there whole or not at all; two plans may run at once."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps(result, separators=(",", ":")).encode()
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as raw:
            raw.write(gzip.compress(text))
        Path(raw.name).replace(kept)

    def _read(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        parts = entry.get("parts")
        if parts:
            return self._read_parts(entry, parts)
        where = (
            {"path": str(entry["path"])}
            if entry.get("path")
            else {"url": str(entry["url"])}
            if entry.get("url")
            else {}
        )
        if not where:
            raise SourceError(f"model {entry.get('name')!r} has neither url nor path nor parts in llama_model_files")
        token = None if "path" in where else entry.get("token") or None
        return _gguf_source.read_model(
            **where,
            token=token,
            opener=self.opener,
            endpoint=str(entry.get("hf_endpoint") or HUGGING_FACE),
            build=str(entry["build"]),
        )

    def _read_parts(self, entry: Mapping[str, Any], parts: Any) -> dict[str, Any]:
        endpoint = str(entry.get("hf_endpoint") or HUGGING_FACE)
        pieces: list[Any] = []
        sizes = []
        for number, part in enumerate(parts):
            if part.get("path"):
                piece: Any = _gguf_source.FileSource(str(part["path"]))
                sizes.append(piece.size)
            elif part.get("url") and part.get("bytes"):
                address = _gguf_source.resolve_reference(str(part["url"]), endpoint)
                piece = _gguf_source.HttpSource(self.opener, address, part.get("token") or None)
                sizes.append(int(part["bytes"]))
            else:
                raise SourceError(f"part {number} of model {entry.get('name')!r} needs a path, or a url and its bytes")
            pieces.append(piece)
        joined = _gguf_source.JoinedSource(str(entry.get("name")), pieces, sizes)
        return _gguf.describe(_gguf_source.read_parts([joined]), str(entry["build"]))

    @staticmethod
    def _differences(entry: Mapping[str, Any], result: Mapping[str, Any]) -> list[dict[str, str]]:
        """Where the file is not the one that the inventory means, told before it is downloaded."""
        found = []
        size, asked = result["model"]["file_bytes"], entry.get("bytes")
        if asked is not None and size is not None and int(asked) != size:
            found.append(
                {
                    "level": "error",
                    "code": "size_differs",
                    "message": f"llama_model_files says {asked} bytes, but the file has {size}",
                }
            )
        etag = str((result.get("source") or {}).get("etag") or "")
        digest = str(entry.get("sha256", "")).lower()
        if _SHA256.fullmatch(etag) and _SHA256.fullmatch(digest) and etag != digest:
            found.append(
                {
                    "level": "error",
                    "code": "digest_differs",
                    "message": f"llama_model_files says sha256 {digest}, but the server's file has {etag}",
                }
            )
        return found
