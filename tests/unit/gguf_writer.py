# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes GGUF files for the tests, valid ones and others, independently of the reader under test."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
TYPE_NUMBERS = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "BF16": 30,
    "MXFP4": 39,
    "TURBO2": 42,
}


class Typed(NamedTuple):
    """A value with its GGUF type, where the type that kind_of() picks is not the one wanted."""

    kind: int
    value: Any


class Strings(NamedTuple):
    """An array of strings, already encoded: for vocabularies of real size."""

    count: int
    raw: bytes


def kind_of(value: Any) -> int:
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return 4 if value >= 0 else 5
    return 6 if isinstance(value, float) else STRING


class Writer:
    def __init__(self, order: str = "<", version: int = 3, alignment: int = 32) -> None:
        self.order, self.version, self.alignment = order, version, alignment

    def pack(self, code: str, *values: Any) -> bytes:
        return struct.pack(self.order + code, *values)

    def string(self, text: str | bytes) -> bytes:
        raw = text.encode() if isinstance(text, str) else text
        return self.pack("Q", len(raw)) + raw

    def scalar(self, kind: int, value: Any) -> bytes:
        return self.string(value) if kind == STRING else self.pack(CODES[kind], value)

    def strings(self, items: list[str | bytes]) -> Strings:
        return Strings(len(items), b"".join(map(self.string, items)))

    def pair(self, key: str | bytes, value: Any) -> bytes:
        head = self.string(key)
        if isinstance(value, Strings):
            return head + self.pack("IIQ", ARRAY, STRING, value.count) + value.raw
        if isinstance(value, list):
            kind = kind_of(value[0]) if value else 4
            return head + self.pack("IIQ", ARRAY, kind, len(value)) + b"".join(self.scalar(kind, x) for x in value)
        if isinstance(value, Typed) and isinstance(value.value, list):
            items = b"".join(self.scalar(value.kind, x) for x in value.value)
            return head + self.pack("IIQ", ARRAY, value.kind, len(value.value)) + items
        kind, plain = value if isinstance(value, Typed) else (kind_of(value), value)
        return head + self.pack("I", kind) + self.scalar(kind, plain)

    def tensor(self, name: str, dims: list[int], type_number: int, offset: int) -> bytes:
        return (
            self.string(name)
            + self.pack("I", len(dims))
            + b"".join(self.pack("Q", dim) for dim in dims)
            + self.pack("IQ", type_number, offset)
        )

    def header(self, metadata: dict[str, Any], tensors: list[list[Any]]) -> tuple[bytes, int]:
        """The header with its padding, and how many bytes of data it promises; tensors as [name, dims, type, bytes]."""
        out = b"GGUF" + self.pack("IQQ", self.version, len(tensors), len(metadata))
        out += b"".join(self.pair(key, value) for key, value in metadata.items())
        offset = 0
        for name, dims, kind, size in tensors:
            out += self.tensor(name, dims, TYPE_NUMBERS.get(kind, kind), offset)
            offset += -(-size // self.alignment) * self.alignment
        return out + bytes(-len(out) % self.alignment), offset

    def file(self, metadata: dict[str, Any], tensors: list[list[Any]]) -> bytes:
        head, data = self.header(metadata, tensors)
        return head + bytes(data)


GEMMA4_END = {1: "<eos>", 50: "<|tool_response>", 106: "<turn|>"}


def vocabulary(
    writer: Writer,
    tokens: int,
    merges: int = 0,
    named: dict[int, str] | None = None,
    types: dict[int, int] | None = None,
) -> dict[str, Any]:
    """A vocabulary of the kind that a BPE tokenizer has; lengths go around 5 bytes for tokens and 11 for merges."""
    names = GEMMA4_END if named is None else named
    words: list[str | bytes] = [names.get(i) or f"t{i:x}" for i in range(tokens)]
    result: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": writer.strings(words),
        "tokenizer.ggml.token_type": Typed(5, [3 if i in names else 1 for i in range(tokens)]),
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
    }
    for number, kind in (types or {}).items():
        result["tokenizer.ggml.token_type"].value[number] = kind
    if merges:
        result["tokenizer.ggml.merges"] = writer.strings([f"t{i:x} t{i + 1:x}" for i in range(merges)])
    return result


def small_model(
    writer: Writer | None = None, architecture: str = "gemma4", **metadata: Any
) -> tuple[dict[str, Any], list[list[Any]]]:
    """Metadata and tensors of a whole, sound, tiny model."""
    writer = writer or Writer()
    pairs = {
        "general.architecture": architecture,
        "general.name": "Größe",
        f"{architecture}.block_count": 2,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-06,
        f"{architecture}.attention.head_count_kv": [8, 2],
        f"{architecture}.attention.sliding_window_pattern": [True, False],
        "general.offset": Typed(11, -(2**40)),
        **vocabulary(writer, 200),
        **metadata,
    }
    tensors: list[list[Any]] = [
        ["token_embd.weight", [256, 200], "Q6_K", 200 * 210],
        ["output_norm.weight", [256], "F32", 1024],
        ["blk.0.attn_q.weight", [256, 32], "Q4_K", 32 * 144],
        ["blk.1.attn_q.weight", [256, 3], "Q8_0", 3 * 272],
    ]
    return pairs, tensors
