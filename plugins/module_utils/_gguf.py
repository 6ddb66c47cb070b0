# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the header of GGUF files: what a model is, without its data. Private to the collection.

The format is that of ggml/src/gguf.cpp; what llama.cpp refuses there is refused here or told as a finding. Nothing
here trusts the file: every length is compared with what is left before anything is allocated, the header may not
exceed C{MAX_HEADER_BYTES}, and the vocabulary (most of a header) is stepped over, never turned into Python objects.
"""

from __future__ import annotations

import math
import re
import struct
from bisect import bisect_right
from typing import Any, NamedTuple, Protocol

from ansible_collections.llamafleet.turboquant.plugins.module_utils._gguf_types import (
    BUILDS,
    DEFAULT_BUILD,
    Build,
    build_of,
)

# The largest header known (Gemma 4: 262,144 tokens and 514,906 merges) has 16.6 MB.
MAX_HEADER_BYTES = 128 * 1024 * 1024
# Known models stay below 200 pairs and 2,000 tensors (DeepSeek-V3: 1,025).
MAX_PAIRS = 65_536
MAX_TENSORS = 131_072
# Longer arrays and strings are reported by type and length. A model has an entry for each layer (128 in the largest
# known); the chat templates in use have at most 20 KB.
MAX_CARRIED_ITEMS = 1024
MAX_CARRIED_STRING = 65_536
MAX_CARRIED_TOTAL = 1024 * 1024
# GGML_MAX_NAME and GGML_MAX_DIMS in ggml/include/ggml.h
MAX_NAME = 64
MAX_DIMS = 4
MAX_ELEMENTS = 2**63 - 1

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "B"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_TYPE_NAMES = {**{number: name for number, (name, _skipped) in _SCALARS.items()}, _STRING: "string", _ARRAY: "array"}

# The least that one pair (key of one byte, type, one byte) and one tensor (name of one byte, one dimension) take.
_LEAST_PAIR = 8 + 1 + 4 + 1
_LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
_USUAL_TENSOR = 8 + 24 + 4 + 16 + 4 + 8
# A merge is two tokens of a byte at least, and a space.
_LEAST_MERGE = 8 + 3
_USUAL_MERGE = 8 + 9

# Strings stepped over by one regular expression; see _string_run.
_RUN = 1024

_CONTROL = 3
_TOKEN_TYPE_NAMES = {0: "undefined", 1: "normal", 2: "unknown", 3: "control", 4: "user_defined", 5: "unused", 6: "byte"}

# Texts that end generation wherever they stand in a vocabulary: llama_vocab::impl::load in src/llama-vocab.cpp, the
# list below "maintain a list of tokens that cause end-of-generation". "[e~[" came after the fork's commit.
_EOG_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
_EOG_TEXTS_OF_BUILD = {"upstream-b11434": (*_EOG_TEXTS, "[e~[")}
# special_eos_id of each tokenizer where the file has no key for it (same function, above).
_DEFAULT_EOS = {"llama": 2, "gpt2": 11, "t5": 1, "plamo2": 2}
# These join the list by their id alone.
_EOG_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# What ends a turn, by architecture: without it the server goes on until the context is full. For gemma4 these are
# the ids 1, 50 and 106 (the model's generation_config.json).
_EXPECTED_EOG = {
    "gemma": ("<eos>", "<end_of_turn>"),
    "gemma2": ("<eos>", "<end_of_turn>"),
    "gemma3": ("<eos>", "<end_of_turn>"),
    "gemma3n": ("<eos>", "<end_of_turn>"),
    "gemma4": ("<eos>", "<|tool_response>", "<turn|>"),
    "gpt-oss": ("<|return|>", "<|call|>"),
}
# Architectures that embed or encode: they generate nothing, so neither a template nor an end of turn is missed.
_ENCODERS = """
    bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding llama-embed
    t5encoder wavtokenizer-dec
"""
_NOT_GENERATING = frozenset(_ENCODERS.split())
_NOT_MODELS = {
    "clip": "the image or audio projector of a model; give it to llama-server as --mmproj",
    "mmproj": "the image or audio projector of a model; give it to llama-server as --mmproj",
    "adapter": "an adapter (LoRA); give it to llama-server as --lora",
    "imatrix": "an importance matrix, which only llama-quantize reads",
}


class GgufError(ValueError):
    """The file is not a GGUF file that llama.cpp could read; the message says where and why."""


class Source(Protocol):
    """Where the bytes come from."""

    name: str
    size: int | None

    def read(self, start: int, needed: int, likely: int, sure: int) -> bytes:
        """Bytes from C{start} on: at least C{needed} unless the file ends there, at most what the source likes.

        C{sure} bytes are certain to be asked for sooner or later, C{likely} is the best guess of how many.
        """


class Span(NamedTuple):
    """Where the items of a large array lie in the header."""

    start: int
    end: int
    items: int
    item_type: int
    marks: list[int]
    """For strings: where every C{_RUN}th item begins."""


class Tensor(NamedTuple):
    name: str
    dims: list[int]
    type_number: int
    offset: int


class Header(NamedTuple):
    version: int
    byte_order: str
    alignment: int
    metadata: dict[str, Any]
    tensors: list[Tensor]
    header_bytes: int
    spans: dict[str, Span]
    raw: bytearray


def _printable(raw: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in raw)


def _string_run(order: str) -> re.Pattern[bytes]:
    """A pattern that steps over C{_RUN} strings of fewer than 256 bytes.

    A string is an 8-byte length and its bytes. One alternative for each length lets the regular expression engine
    do the walk: 777,050 strings take 0.07 s, a loop in Python takes 0.11 to 0.14 s. The alternatives exclude each
    other by their first bytes, so a failed match does not backtrack into other readings.
    """
    zeros = rb"\x00" * 7
    lengths = (re.escape(bytes([n])) for n in range(256))
    prefixes = (zeros + n if order == ">" else n + zeros for n in lengths)
    alternatives = b"|".join(prefix + (b".{%d}" % n if n else b"") for n, prefix in enumerate(prefixes))
    return re.compile(b"(?s)(?:" + alternatives + b"){%d}" % _RUN)


_RUN_PATTERNS: dict[str, re.Pattern[bytes]] = {}


class _Reader:
    """A cursor over a growing copy of the file's beginning."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.raw = bytearray()
        self.at = 0
        self.order = "<"
        self.pairs_left = 0
        self.tensors_left = 0
        self.more_likely = 0
        self._unpackers: dict[str, struct.Struct] = {}

    def fail(self, text: str) -> GgufError:
        return GgufError(f"{self.source.name}: {text} (at byte {self.at})")

    def need(self, count: int, what: str, *, sure: int = 0, likely: int = 0) -> None:
        """Have C{count} bytes from the cursor on; C{sure} and C{likely} say what else this part will want."""
        end = self.at + count
        if end <= len(self.raw):
            return
        if self.source.size is not None and end > self.source.size:
            raise self.fail(f"{what} ends at byte {end}, but the file has {self.source.size}")
        if end > MAX_HEADER_BYTES:
            raise self.fail(f"{what} ends at byte {end}, but a header may have at most {MAX_HEADER_BYTES} bytes")
        rest_sure = self.pairs_left * _LEAST_PAIR + self.tensors_left * _LEAST_TENSOR
        rest_likely = self.pairs_left * _LEAST_PAIR + self.tensors_left * _USUAL_TENSOR + self.more_likely
        while end > (have := len(self.raw)):
            chunk = self.source.read(
                have,
                end - have,
                self.at + max(count, likely) + rest_likely - have,
                self.at + max(count, sure) + rest_sure - have,
            )
            if not chunk:
                raise self.fail(f"{what} ends at byte {end}, but the file has {have}")
            self.raw += chunk

    def number(self, code: str, what: str) -> Any:
        unpacker = self._unpackers.get(code)
        if unpacker is None:
            unpacker = self._unpackers[code] = struct.Struct(self.order + code)
        self.need(unpacker.size, what)
        (value,) = unpacker.unpack_from(self.raw, self.at)
        self.at += unpacker.size
        return value

    def string_bytes(self, what: str) -> bytes:
        length = self.number("Q", f"the length of {what}")
        self.need(length, f"{what} of {length} bytes")
        start = self.at
        self.at += length
        return bytes(self.raw[start : self.at])

    def string(self, what: str) -> str:
        start = self.at
        raw = self.string_bytes(what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.at = start
            raise self.fail(f"{what} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from error

    def skip_fixed(self, count: int, size: int, what: str) -> None:
        total = count * size
        self.need(total, f"{what}, {count} items of {size} bytes,")
        self.at += total

    def skip_strings(self, count: int, what: str, least: int = 8) -> list[int]:
        """Step over C{count} strings; returns where every C{_RUN}th of them begins."""
        if self.order not in _RUN_PATTERNS:
            _RUN_PATTERNS[self.order] = _string_run(self.order)
        match_run = _RUN_PATTERNS[self.order].match
        length_at = struct.Struct(self.order + "Q").unpack_from
        raw = self.raw
        first = self.at
        left = count
        marks = []
        while left:
            marks.append(self.at)
            if left >= _RUN and (match := match_run(raw, self.at)):
                self.at = match.end()
                left -= _RUN
                continue
            # A long string among them, the end of what has been read, or the last few.
            for _skipped in range(min(left, _RUN)):
                if self.at + 8 > len(raw):
                    self._need_strings(8, left, count, first, what, least)
                (length,) = length_at(raw, self.at)
                if self.at + 8 + length > len(raw):
                    self._need_strings(8 + length, left, count, first, what, least)
                self.at += 8 + length
                left -= 1
        return marks

    def _need_strings(self, needed: int, left: int, count: int, first: int, what: str, least: int) -> None:
        done = count - left
        mean = (self.at - first) / done if done else 16.0
        # A little more than the mean of those seen, so that a guess that is right by and large costs no second request.
        likely = needed + int(1.1 * mean * left)
        self.need(needed, f"item {done} of {what}", sure=needed + least * (left - 1), likely=likely)


def _float(value: float, code: str) -> float | str:
    """A float as JSON can carry it; a float32 with the digits that it has, 1e-06 and not 9.999999974752427e-07."""
    if not math.isfinite(value):
        return str(value)
    if code == "f":
        for digits in (6, 7, 8, 9):
            short = float(f"{value:.{digits}g}")
            if struct.pack("f", short) == struct.pack("f", value):
                return short
    return value


def _scalar(reader: _Reader, kind: int, what: str) -> Any:
    name, code = _SCALARS[kind]
    value = reader.number(code, what)
    if name == "bool":
        return value != 0
    return _float(value, code) if code in "fd" else value


def read_header(source: Source) -> Header:
    """Read a header, and no more of the source than it needs; raises L{GgufError}."""
    reader = _Reader(source)
    reader.need(4, "the magic number")
    if reader.raw[:4] != b"GGUF":
        raise reader.fail(
            f"not a GGUF file: it begins with {_printable(bytes(reader.raw[:4]))!r}"
            f" ({reader.raw[:4].hex()}), a GGUF file with 'GGUF'"
        )
    reader.at = 4
    reader.need(20, "the fixed part of the header")
    # Versions are small numbers, so a version whose low half is empty was written in the other byte order
    # (as gguf_init_from_file_ptr does it).
    if not int.from_bytes(reader.raw[4:6], "little"):
        reader.order = ">"
    version = reader.number("I", "the version")
    if version not in (2, 3):
        raise reader.fail(f"GGUF version {version} is not supported; llama.cpp reads versions 2 and 3")
    tensor_count = reader.number("Q", "the number of tensors")
    pair_count = reader.number("Q", "the number of metadata pairs")
    if pair_count > MAX_PAIRS:
        raise reader.fail(f"{pair_count} metadata pairs are more than the {MAX_PAIRS} that are read")
    if tensor_count > MAX_TENSORS:
        raise reader.fail(f"{tensor_count} tensors are more than the {MAX_TENSORS} that are read")
    reader.pairs_left, reader.tensors_left = pair_count, tensor_count
    metadata, spans = _read_pairs(reader, pair_count)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise reader.fail(f"general.alignment is {alignment!r}, but must be a power of two")
    tensors = _read_tensors(reader, tensor_count)
    header_bytes = -(-reader.at // alignment) * alignment
    order = "little" if reader.order == "<" else "big"
    return Header(version, order, alignment, metadata, tensors, header_bytes, spans, reader.raw)


def _read_pairs(reader: _Reader, count: int) -> tuple[dict[str, Any], dict[str, Span]]:
    metadata: dict[str, Any] = {}
    spans: dict[str, Span] = {}
    carried = 0
    for number in range(count):
        reader.pairs_left = count - number - 1
        key = reader.string(f"key {number}")
        reader.more_likely = _announced(metadata, key)
        if key in metadata:
            raise reader.fail(f"key {key!r} stands twice")
        kind = reader.number("I", f"the type of {key!r}")
        if kind in _SCALARS:
            metadata[key] = _scalar(reader, kind, f"the value of {key!r}")
        elif kind == _STRING:
            (length,) = struct.unpack_from(reader.order + "Q", _peek(reader, 8, f"the length of {key!r}"))
            if length > MAX_CARRIED_STRING or carried + length > MAX_CARRIED_TOTAL:
                reader.at += 8
                reader.skip_fixed(length, 1, f"the value of {key!r}")
                metadata[key] = {"type": "string", "bytes": length}
            else:
                metadata[key] = reader.string(f"the value of {key!r}")
                carried += length
        elif kind == _ARRAY:
            metadata[key], span = _read_array(reader, key, carried < MAX_CARRIED_TOTAL)
            if span is not None:
                spans[key] = span
            else:
                carried += 8 * len(metadata[key]) + sum(len(x) for x in metadata[key] if isinstance(x, str))
        else:
            raise reader.fail(f"key {key!r} has the unknown type {kind}")
    return metadata, spans


def _announced(metadata: dict[str, Any], key: str) -> int:
    """How much is likely to follow the value of C{key} for what has been read so far: a tokenizer of the BPE kind
    has about two merges for each token, mostly after all its other arrays."""
    if not key.startswith("tokenizer.ggml.") or "tokenizer.ggml.merges" in metadata or key == "tokenizer.ggml.merges":
        return 0
    bpe = metadata.get("tokenizer.ggml.model") in ("gpt2", "gemma4")
    return _USUAL_MERGE * 2 * vocabulary_size(metadata) if bpe else 0


def _peek(reader: _Reader, count: int, what: str) -> bytearray:
    reader.need(count, what)
    return reader.raw[reader.at : reader.at + count]


def _read_array(reader: _Reader, key: str, may_carry: bool) -> tuple[Any, Span | None]:
    what = f"the array {key!r}"
    item = reader.number("I", f"the item type of {what}")
    if item == _ARRAY:
        raise reader.fail(f"{what} is an array of arrays, which llama.cpp refuses")
    if item not in _TYPE_NAMES:
        raise reader.fail(f"{what} has items of the unknown type {item}")
    count = reader.number("Q", f"the length of {what}")
    start = reader.at
    # Whether the items can be there at all, before anything is read or skipped.
    least = 8 if item == _STRING else struct.calcsize(_SCALARS[item][1])
    room = MAX_HEADER_BYTES - start
    if reader.source.size is not None:
        room = min(room, reader.source.size - start)
    if count * least > room:
        raise reader.fail(f"{what} promises {count} items of at least {least} bytes, but {room} bytes are left")
    if item == _STRING:
        if count <= MAX_CARRIED_ITEMS and may_carry:
            values, total = [], 0
            for number in range(count):
                values.append(reader.string(f"item {number} of {what}"))
                total += len(values[-1])
                if total > MAX_CARRIED_STRING:
                    break
            else:
                return values, None
            reader.at = start
        marks = reader.skip_strings(count, what, _LEAST_MERGE if key == "tokenizer.ggml.merges" else 8)
        return {"type": "string", "length": count}, Span(start, reader.at, count, item, marks)
    name, code = _SCALARS[item]
    if count <= MAX_CARRIED_ITEMS and may_carry:
        size = count * least
        reader.need(size, what)
        numbers = struct.unpack_from(f"{reader.order}{count}{code}", reader.raw, reader.at)
        reader.at += size
        if name == "bool":
            return [value != 0 for value in numbers], None
        return [_float(value, code) if code in "fd" else value for value in numbers], None
    reader.skip_fixed(count, least, what)
    return {"type": name, "length": count}, Span(start, reader.at, count, item, [])


def _read_tensors(reader: _Reader, count: int) -> list[Tensor]:
    tensors = []
    names = set()
    for number in range(count):
        reader.tensors_left = count - number - 1
        name = reader.string(f"the name of tensor {number}")
        length = len(name.encode())
        if length >= MAX_NAME:
            raise reader.fail(f"the name of tensor {number} has {length} bytes, at most {MAX_NAME - 1} are allowed")
        if name in names:
            raise reader.fail(f"tensor {name!r} stands twice")
        names.add(name)
        dim_count = reader.number("I", f"the number of dimensions of {name!r}")
        if dim_count > MAX_DIMS:
            raise reader.fail(f"tensor {name!r} has {dim_count} dimensions, at most {MAX_DIMS} are allowed")
        dims = [reader.number("Q", f"dimension {i} of {name!r}") for i in range(dim_count)]
        if math.prod(dims) > MAX_ELEMENTS or any(dim > MAX_ELEMENTS for dim in dims):
            raise reader.fail(f"tensor {name!r} has the shape {dims}, more elements than can be counted")
        type_number = reader.number("I", f"the type of {name!r}")
        tensors.append(Tensor(name, dims, type_number, reader.number("Q", f"the offset of {name!r}")))
    return tensors


def find_tokens(header: Header, texts: tuple[str, ...]) -> dict[str, int]:
    """The ids of those of C{texts} that the vocabulary has, found without turning the vocabulary into objects."""
    span = header.spans.get("tokenizer.ggml.tokens")
    if span is None:
        tokens = header.metadata.get("tokenizer.ggml.tokens", [])
        return {text: tokens.index(text) for text in texts if text in tokens}
    if span.item_type != _STRING:
        return {}
    raw = header.raw
    length_at = struct.Struct(("<" if header.byte_order == "little" else ">") + "Q").unpack_from
    # Longest first, so that of two texts that begin alike the longer one is tried.
    by_length = sorted((text.encode() for text in texts), key=len, reverse=True)
    pattern = re.compile(b"|".join(re.escape(text) for text in by_length))
    found: dict[str, int] = {}
    index, at = 0, span.start
    for match in pattern.finditer(raw, span.start, span.end):
        text = match.group()
        begin = match.start() - 8
        # The text as a whole token has its own length before it ...
        if begin < at or length_at(raw, begin)[0] != len(text):
            continue
        # ... and a token begins there. The walk only goes forward, so all of them together cost one pass at most.
        mark = bisect_right(span.marks, begin) - 1
        if mark * _RUN > index:
            index, at = mark * _RUN, span.marks[mark]
        while at < begin:
            at += 8 + length_at(raw, at)[0]
            index += 1
        if at == begin:
            found.setdefault(text.decode(), index)
    return found


def token_types(header: Header, ids: list[int]) -> list[int | None]:
    """The types of these tokens as the file has them; None where it does not say."""
    span = header.spans.get("tokenizer.ggml.token_type")
    if span is None:
        values = header.metadata.get("tokenizer.ggml.token_type", [])
        return [values[i] if isinstance(values, list) and i < len(values) else None for i in ids]
    if span.item_type not in (4, 5):
        return [None for _skipped in ids]
    unpacker = struct.Struct(("<" if header.byte_order == "little" else ">") + _SCALARS[span.item_type][1])
    return [unpacker.unpack_from(header.raw, span.start + 4 * i)[0] if i < span.items else None for i in ids]


def vocabulary_size(metadata: dict[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    return tokens["length"] if isinstance(tokens, dict) else len(tokens)


def end_of_generation(header: Header, build: Build) -> list[dict[str, Any]]:
    """The tokens that end generation, as src/llama-vocab.cpp determines them: by text, and by three keys."""
    texts = _EOG_TEXTS_OF_BUILD.get(build.name, _EOG_TEXTS)
    by_id = {number: text for text, number in find_tokens(header, texts).items()}
    size = vocabulary_size(header.metadata)
    tokenizer = header.metadata.get("tokenizer.ggml.model")
    default = _DEFAULT_EOS.get(tokenizer) if isinstance(tokenizer, str) else None
    for key in _EOG_KEYS:
        number = header.metadata.get(f"tokenizer.ggml.{key}", default if key == "eos_token_id" else None)
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < size:
            by_id.setdefault(number, _token_text(header, number))
    present = set(by_id.values())
    # Two corrections of the same function: "<|end|>" only ends a part of a turn where there are "<|return|>" and
    # "<|call|>" or "<|flush|>" and "<|calls|>", and Gemma 4 has an "</s>" that ends nothing.
    calls = bool(present & {"<|call|>", "<|calls|>"})
    dropped = set()
    if calls and present & {"<|return|>", "<|flush|>"}:
        dropped.add("<|end|>")
    if "<|tool_response>" in present:
        dropped.add("</s>")
    kept = sorted((number, text) for number, text in by_id.items() if text not in dropped)
    kinds = token_types(header, [number for number, _skipped in kept])
    return [
        {"id": number, "text": text, "type": _TOKEN_TYPE_NAMES.get(kind, str(kind)) if kind is not None else None}
        for (number, text), kind in zip(kept, kinds)
    ]


def _token_text(header: Header, number: int) -> str:
    span = header.spans.get("tokenizer.ggml.tokens")
    if span is None:
        return str(header.metadata["tokenizer.ggml.tokens"][number])
    if span.item_type != _STRING:
        return ""
    length_at = struct.Struct(("<" if header.byte_order == "little" else ">") + "Q").unpack_from
    at = span.marks[number // _RUN]
    for _skipped in range(number % _RUN):
        at += 8 + length_at(header.raw, at)[0]
    (length,) = length_at(header.raw, at)
    return bytes(header.raw[at + 8 : at + 8 + min(length, 256)]).decode("utf-8", "replace")


def _finding(level: str, code: str, message: str) -> dict[str, str]:
    return {"level": level, "code": code, "message": message}


def tensor_sizes(header: Header, build: Build, file_bytes: int | None) -> tuple[list[list[Any]], list[dict[str, str]]]:
    """The tensors as C{[name, dims, type, bytes]}, what is wrong with them, in the order of the file."""
    rows: list[list[Any]] = []
    checks = []
    unknown: dict[int, str] = {}
    expected = 0
    displaced = None
    last = len(header.tensors) - 1
    for number, tensor in enumerate(header.tensors):
        kind = build.types.get(tensor.type_number)
        elements = math.prod(tensor.dims)
        if kind is None:
            # The distance to the next tensor is what the file itself says about an unknown type's size.
            if number < last:
                size = max(header.tensors[number + 1].offset - tensor.offset, 0)
            else:
                size = max((file_bytes or 0) - header.header_bytes - tensor.offset, 0)
            unknown.setdefault(tensor.type_number, tensor.name)
            rows.append([tensor.name, tensor.dims, f"UNKNOWN_{tensor.type_number}", size])
            expected = tensor.offset + size
            continue
        row = tensor.dims[0] if tensor.dims else 1
        if row % kind.values:
            checks.append(
                _finding(
                    "error",
                    "tensor_row",
                    f"tensor {tensor.name!r} has rows of {row} elements, but {kind.name} stores blocks of"
                    f" {kind.values}; llama.cpp does not load the file",
                )
            )
        size = -(-elements // kind.values) * kind.size
        if tensor.offset != expected and displaced is None:
            displaced = (tensor.name, tensor.offset, expected)
        rows.append([tensor.name, tensor.dims, kind.name, size])
        expected = -(-(tensor.offset + size) // header.alignment) * header.alignment
    for type_number, name in sorted(unknown.items()):
        others = [
            f"{other.types[type_number].name} in {other.name}"
            for other in BUILDS.values()
            if type_number in other.types
        ]
        hint = f" (it is {', '.join(others)})" if others else ""
        checks.append(
            _finding(
                "error",
                "unknown_tensor_type",
                f"tensor {name!r} has the type {type_number}, which {build.name} does not know{hint};"
                " its size is taken from the distance to the next tensor",
            )
        )
    if displaced is not None and not unknown:
        name, offset, should = displaced
        clash = (
            ""
            if not _clashing(header, build)
            else ("; types 42 to 44 mean different things in different builds, so the file may be made for another one")
        )
        checks.append(
            _finding(
                "error",
                "tensor_offset",
                f"tensor {name!r} lies at {offset} of the data, but the sizes of those before it end at {should};"
                f" llama.cpp does not load the file{clash}",
            )
        )
    return rows, checks


def _clashing(header: Header, build: Build) -> bool:
    used = {tensor.type_number for tensor in header.tensors}
    return any(
        other.types.get(number) not in (None, build.types.get(number)) for number in used for other in BUILDS.values()
    )


def data_end(header: Header, rows: list[list[Any]]) -> int:
    """Where the header says that the file ends: after the last tensor's bytes, its padding not counted."""
    ends = (tensor.offset + row[3] for tensor, row in zip(header.tensors, rows))
    return header.header_bytes + max(ends, default=0)


def _size_checks(header: Header, rows: list[list[Any]], file_bytes: int | None, name: str) -> list[dict[str, str]]:
    end = data_end(header, rows)
    if file_bytes is None:
        return [_finding("info", "size_unknown", f"{name}: the server does not say how large the file is")]
    if not rows:
        # Nothing follows the header, so its padding need not be there either.
        return []
    if file_bytes < end:
        return [
            _finding(
                "error",
                "truncated",
                f"{name} has {file_bytes} bytes, but its header promises {end}: {end - file_bytes} are missing",
            )
        ]
    padded = -(-end // header.alignment) * header.alignment
    if file_bytes > padded:
        return [
            _finding(
                "info",
                "trailing_bytes",
                f"{name} has {file_bytes} bytes, {file_bytes - padded} more than its header accounts for",
            )
        ]
    return []


def _architecture_checks(header: Header, architecture: str, build: Build) -> list[dict[str, str]]:
    kind = header.metadata.get("general.type")
    for sign in (architecture, kind):
        if isinstance(sign, str) and sign in _NOT_MODELS:
            return [_finding("error", "not_a_model", f"this file is {_NOT_MODELS[sign]}")]
    if architecture in build.architectures:
        return []
    others = sorted(other.name for other in BUILDS.values() if architecture in other.architectures)
    hint = f"; {', '.join(others)} does" if others else "; no build in this collection's tables does"
    return [
        _finding("error", "unknown_architecture", f"{build.name} does not load architecture {architecture!r}{hint}")
    ]


_FIXED_FILE = (
    "fetch the fixed file, which is a later revision of its repository or one that was converted with a current"
    " convert_hf_to_gguf.py, and list its sha256"
)


def _vocabulary_checks(header: Header, architecture: str, tokens: list[dict[str, Any]]) -> list[dict[str, str]]:
    checks = []
    metadata = header.metadata
    size = vocabulary_size(metadata)
    if not size:
        if metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
            checks.append(_finding("warning", "vocabulary_missing", "the file has no vocabulary: nothing can be asked"))
        return checks
    for key in _EOG_KEYS:
        number = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(number, int) and number >= size:
            checks.append(
                _finding(
                    "warning",
                    "eog_out_of_range",
                    f"tokenizer.ggml.{key} is {number}, but the vocabulary has {size} tokens; llama.cpp ignores it",
                )
            )
    if architecture in _NOT_GENERATING:
        return checks
    if not tokens:
        checks.append(
            _finding(
                "error",
                "eog_missing",
                "no token ends generation: every answer would go on until the context or the token limit is full; "
                + _FIXED_FILE,
            )
        )
    present = {token["text"] for token in tokens}
    expected = _EXPECTED_EOG.get(architecture, ())
    missing = [text for text in expected if text not in present]
    # A model that was trained on for other turns ends them with a token of its own, and has no need of this one.
    if missing and tokens and expected[-1] in missing and present <= set(expected):
        checks.append(
            _finding(
                "error",
                "eog_turn_missing",
                f"{architecture} ends its turns with {expected[-1]}, which is no token of this file, and only"
                f" {', '.join(sorted(present))} would end generation: answers in a chat would not stop; {_FIXED_FILE}",
            )
        )
    elif missing and tokens:
        checks.append(
            _finding(
                "warning",
                "eog_expected",
                f"{architecture} ends its turns with {', '.join(missing)} too, which the vocabulary lacks:"
                " answers may not stop",
            )
        )
    # Many vocabularies have an incidental "</s>" among their ordinary words (Qwen's has); it only matters where it is
    # what the model itself ends with.
    named = {metadata.get(f"tokenizer.ggml.{key}") for key in _EOG_KEYS}
    checks.extend(
        _finding(
            "warning" if token["id"] in named or token["text"] in _EXPECTED_EOG.get(architecture, ()) else "info",
            "eog_typed_normal",
            f"token {token['id']} {token['text']!r} ends generation but is typed normal instead of control, so it is"
            " matched in plain text too; llama.cpp overrides the type of those that it knows by their text",
        )
        for token in tokens
        if token["type"] == "normal"
    )
    if "tokenizer.chat_template" not in metadata:
        checks.append(
            _finding(
                "warning",
                "chat_template_missing",
                "the file has no chat template: llama-server falls back to ChatML, which this model may not have"
                " been trained on; give it --chat-template or --chat-template-file",
            )
        )
    return checks


class Part(NamedTuple):
    """One file of a model."""

    name: str
    header: Header
    file_bytes: int | None


def describe(parts: list[Part], build_name: str = DEFAULT_BUILD) -> dict[str, Any]:
    """The C{model} and the C{checks} of the module gguf_info, from the headers of a model's files."""
    build = build_of(build_name)
    first = parts[0].header
    architecture = first.metadata.get("general.architecture")
    checks: list[dict[str, str]] = []
    if not isinstance(architecture, str):
        raise GgufError(f"{parts[0].name}: general.architecture is missing, so no program knows what this file is")
    checks += _architecture_checks(first, architecture, build)
    rows: list[list[Any]] = []
    names: set[str] = set()
    for part in parts:
        part_rows, part_checks = tensor_sizes(part.header, build, part.file_bytes)
        checks += part_checks
        checks += _size_checks(part.header, part_rows, part.file_bytes, part.name)
        for row in part_rows:
            if row[0] in names:
                raise GgufError(f"{part.name}: tensor {row[0]!r} stands in an earlier part too")
            names.add(row[0])
        rows += part_rows
    promised = first.metadata.get("split.tensors.count")
    if len(parts) > 1 and isinstance(promised, int) and promised != len(rows):
        checks.append(
            _finding(
                "error",
                "split_tensors",
                f"split.tensors.count is {promised}, but the {len(parts)} files have {len(rows)} tensors together",
            )
        )
    if not rows and not any(check["code"] == "not_a_model" for check in checks):
        checks.append(_finding("error", "no_tensors", "the file has no tensors: it is a vocabulary, not a model"))
    tokens = end_of_generation(first, build)
    if not any(check["code"] == "not_a_model" for check in checks):
        checks += _vocabulary_checks(first, architecture, tokens)
    sizes = [part.file_bytes for part in parts]
    return {
        "model": {
            "architecture": architecture,
            "metadata": first.metadata,
            "tensors": rows,
            "file_bytes": None if None in sizes else sum(size or 0 for size in sizes),
            "header_bytes": sum(part.header.header_bytes for part in parts),
        },
        "checks": checks,
        "end_of_generation": tokens,
        "parts": [
            {
                "name": part.name,
                "file_bytes": part.file_bytes,
                "header_bytes": part.header.header_bytes,
                "tensors": len(part.header.tensors),
                "version": part.header.version,
                "byte_order": part.header.byte_order,
                "alignment": part.header.alignment,
            }
            for part in parts
        ],
    }
