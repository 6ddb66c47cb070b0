# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the settings of an instance to the command line of the llama-server that is installed.

Options of llama-server come and go between builds, and one that is unknown ends the program: a unit rendered for
another build is a crash loop. So each option is looked up in the binary's own --help before it is used.

Private to the collection: it may change at any time and is not for use from elsewhere.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, NamedTuple

TURBO_TYPES = ("turbo2", "turbo3", "turbo4")
# Width of the column of names in the help of llama-server (common_arg::to_string).
_COLUMN = 40
_NAME = re.compile(r"-{1,2}[A-Za-z][A-Za-z0-9._-]*")
_ENV = re.compile(r"\(env: ([A-Z0-9_]+)\)")


class FlagError(Exception):
    """An instance asks for what this binary cannot do; the text says what, and what would be right."""


class Option(NamedTuple):
    """One option of the help: its spellings, the placeholder of its value, its text."""

    names: tuple[str, ...]
    hint: str
    text: str

    @property
    def values(self) -> int:
        """How many words follow the option."""
        if not self.hint:
            return 0
        return 2 if re.fullmatch(r"[A-Z]+ [A-Z]+", self.hint) else 1

    @property
    def removed(self) -> bool:
        """True for options that are listed only to say that they are gone."""
        return "argument has been removed" in self.text

    @property
    def environment(self) -> list[str]:
        return _ENV.findall(self.text)


class Options:
    """The options of one binary."""

    def __init__(self, entries: list[Option]) -> None:
        self.entries = entries
        self.by_name = {name: entry for entry in entries for name in entry.names}
        self.by_environment = {name: entry for entry in entries for name in entry.environment}

    def has(self, name: str) -> bool:
        entry = self.by_name.get(name)
        return entry is not None and not entry.removed

    def first(self, *names: str) -> str | None:
        """The first of these spellings that the binary takes."""
        return next((name for name in names if self.has(name)), None)

    def allowed_values(self, name: str) -> list[str]:
        """The values that the help lists for an option such as --cache-type-k; empty when it lists none."""
        match = re.search(r"allowed values: ([A-Za-z0-9_, ]+?)(?: \(|$)", self.by_name[name].text)
        return [] if match is None else [value.strip() for value in match[1].split(",")]


def parse_help(text: str) -> Options:
    """Read the output of llama-server --help."""
    entries: list[Option] = []
    names: list[str] = []
    hint = ""
    words: list[str] = []

    def close() -> None:
        if names:
            entries.append(Option(tuple(names), hint, " ".join(" ".join(words).split())))

    for line in text.splitlines():
        if not line.startswith("-") or line.startswith("-----"):
            words.append(line)
            continue
        close()
        # Names that leave no gap of three before the column stand on a line of their own.
        whole = line[_COLUMN - 3 : _COLUMN].strip() != "" or len(line) <= _COLUMN
        head, words = (line, []) if whole else (line[:_COLUMN], [line[_COLUMN:]])
        names = []
        rest = head.strip()
        while True:
            match = _NAME.match(rest)
            if match is None:
                break
            names.append(match[0])
            rest = rest[match.end() :]
            if not rest.startswith(","):
                break
            rest = rest[1:].lstrip()
        hint = rest.strip()
    close()
    options = Options(entries)
    if not options.has("--model") or not options.has("--port"):
        raise FlagError(
            "the output of llama-server --help names neither --model nor --port; this is not llama-server's help"
        )
    return options


# -- what an operator may not pass by hand ----------------------------------------------------------------------------

# Set from the instance's own variables; a second copy on the command line would win silently.
MANAGED = {
    "--model": "model",
    "--mmproj": "mmproj",
    "--host": "host",
    "--port": "port",
    "--ctx-size": "ctx_size",
    "--parallel": "parallel",
    "--cache-type-k": "cache_type_k",
    "--cache-type-v": "cache_type_v",
    "--n-gpu-layers": "n_gpu_layers",
    "--device": "devices",
    "--batch-size": "batch_size",
    "--ubatch-size": "ubatch_size",
    "--flash-attn": "flash_attn",
    "--cache-ram": "cache_ram_mib",
    "--threads": "threads",
    "--alias": "alias",
    "--load-mode": "load_mode",
    "--mmap": "load_mode",
    "--mlock": "load_mode",
    "--api-key": "api_keys",
    "--api-key-file": "api_keys",
    "--ssl-key-file": "tls",
    "--ssl-cert-file": "tls",
    "--metrics": "nothing (it is always on: draining needs it)",
    "--slots": "slots",
    "--fit": "nothing (it is always off: the plan decides)",
    "--reasoning": "reasoning",
    "--reasoning-budget": "reasoning",
    "--reasoning-format": "reasoning",
    "--log-verbosity": "nothing (the gate reads the memory lines of the log)",
    "--offline": "nothing (it is always set)",
    "--kv-unified": "kv_unified",
    "--model-draft": "draft",
    "--spec-draft-model": "draft",
    "--draft-max": "draft",
    "--spec-draft-n-max": "draft",
    "--draft-min": "draft",
    "--spec-draft-n-min": "draft",
    "--webui": "nothing (it is always off)",
    "--ui": "nothing (it is always off)",
}
# Each of these widens what a client can do to the host or is a known way to kill the server.
FORBIDDEN = {
    "--tools": "gives clients a shell and files of the host",
    "--tools-runtime": "gives clients a shell and files of the host",
    "--agent": "switches on the CORS proxy and all tools",
    "--mcp-servers-config": "starts programs for clients",
    "--mcp-servers-json": "starts programs for clients",
    "--webui-mcp-proxy": "lets clients make requests from the host",
    "--ui-mcp-proxy": "lets clients make requests from the host",
    "--props": "lets clients change global settings",
    "--slot-save-path": "lets clients write files",
    "--media-path": "lets clients read files of the host",
    "--context-shift": "one request with a large n_discard ends the server (ggml-org/llama.cpp 24786)",
    "--sleep-idle-seconds": "CVE-2026-43631, a use after free that no release fixes",
    "--models-dir": "starts the router, whose children listen without a key",
    "--models-preset": "starts the router, whose children listen without a key",
    "--hf-repo": "downloads an unproved model; list it in llama_model_files",
    "--model-url": "downloads an unproved model; list it in llama_model_files",
    "--docker-repo": "downloads an unproved model; list it in llama_model_files",
    "--hf-token": "puts a secret on the command line",
    "--rpc": "connects to servers whose protocol upstream calls unsafe",
    "--reuse-port": "hides that a port is taken",
    "--api-prefix": "hides /health from the readiness check; put the prefix into the reverse proxy",
    "--log-file": "takes the log away from the journal, which the gate reads",
    "--log-disable": "takes away the log, which the gate reads",
    "--log-prompts-dir": "writes prompts of clients to disk",
    "--verbose": "writes prompts of clients to the journal",
}
# Read with getenv() != NULL: any value, also 0 and OFF, switches them on.
PRESENCE_ONLY = (
    "GGML_CUDA_DISABLE_GRAPHS",
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    "GGML_CUDA_NO_PINNED",
    "GGML_CUDA_P2P",
    "GGML_DISABLE_VULKAN",
    "GGML_NO_BACKTRACE",
    "GGML_VK_DISABLE_ASYNC",
    "GGML_VK_DISABLE_BFLOAT16",
    "GGML_VK_DISABLE_COOPMAT",
    "GGML_VK_DISABLE_COOPMAT2",
    "GGML_VK_DISABLE_F16",
    "GGML_VK_DISABLE_FUSION",
    "GGML_VK_DISABLE_GRAPH_OPTIMIZE",
    "GGML_VK_DISABLE_HOST_VISIBLE_VIDMEM",
    "GGML_VK_DISABLE_INTEGER_DOT_PRODUCT",
    "GGML_VK_PREFER_HOST_MEMORY",
)
SECRET_ENVIRONMENT = ("LLAMA_API_KEY", "HF_TOKEN", "LLAMA_ARG_API_KEY_FILE")
_OFF = ("", "0", "off", "false", "no")


def managed_by(options: Options, name: str) -> tuple[str, str] | None:
    """Say whether a spelling means an option that the collection sets or forbids: its long name and the reason."""
    entry = options.by_name.get(name)
    names = entry.names if entry is not None else (name,)
    # "--no-mmap" is listed in the same entry as "--mmap", abbreviations likewise.
    for spelling in names:
        if spelling in FORBIDDEN:
            return spelling, FORBIDDEN[spelling]
        if spelling in MANAGED:
            return spelling, f"is set by the instance's variable {MANAGED[spelling]}"
    return None


def check_extra_args(options: Options, arguments: list[str]) -> list[str]:
    """Return the additional words of the command line, each known to the binary and followed by its values."""
    result: list[str] = []
    index = 0
    while index < len(arguments):
        word = str(arguments[index])
        name, separator, value = word.partition("=")
        if not _NAME.fullmatch(name):
            raise FlagError(f"extra_args: {word!r} is not an option; a value follows the option it belongs to")
        entry = options.by_name.get(name)
        if entry is None or entry.removed:
            near = difflib.get_close_matches(name, [key for key in options.by_name if options.has(key)], 3)
            why = entry.text if entry is not None else "the installed llama-server does not know it"
            raise FlagError(f"extra_args: {name}: {why}" + (f"; near: {', '.join(near)}" if near else ""))
        managed = managed_by(options, name)
        if managed is not None and name != "--no-context-shift":
            raise FlagError(f"extra_args: {name}: {managed[0]} {managed[1]}")
        if separator:
            raise FlagError(
                f"extra_args: {word!r}: llama-server takes the value as the next word; write {name!r}, {value!r}"
            )
        if "download weights" in entry.text:
            raise FlagError(f"extra_args: {name} downloads an unproved model; list it in llama_model_files")
        values = [str(item) for item in arguments[index + 1 : index + 1 + entry.values]]
        if len(values) < entry.values:
            raise FlagError(f"extra_args: {name} needs {entry.hint}, but nothing follows it")
        result += [name, *values]
        index += 1 + entry.values
    return result


def check_environment(options: Options, environment: dict[str, Any]) -> dict[str, str]:
    """Refuse what the program would ignore, misread or leak; return the rest as text."""
    result: dict[str, str] = {}
    for name, value in sorted(environment.items()):
        text = str(value)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise FlagError(f"env: {name!r} is not a name for a variable")
        if "\n" in text or "\0" in text:
            raise FlagError(f"env: the value of {name} has a line break")
        if name in SECRET_ENVIRONMENT:
            raise FlagError(f"env: {name} would show a secret in the unit; use api_keys")
        if name.startswith("LLAMA_ARG_"):
            entry = options.by_environment.get(name)
            if entry is None:
                near = difflib.get_close_matches(name, list(options.by_environment), 2)
                raise FlagError(
                    f"env: {name} is unknown to the installed llama-server, which would ignore it without a word"
                    + (f"; near: {', '.join(near)}" if near else "")
                )
            managed = managed_by(options, entry.names[-1])
            how = managed[1] if managed is not None else f"belongs into extra_args as {entry.names[-1]}"
            raise FlagError(f"env: {name}: the command line wins over it; {entry.names[-1]} {how}")
        if name in PRESENCE_ONLY and text.strip().lower() in _OFF:
            raise FlagError(
                f"env: {name}={text} would switch it on, since only its presence is read; leave it out instead"
            )
        result[name] = text
    return result


# -- the command line -------------------------------------------------------------------------------------------------


def _need(options: Options, what: str, *names: str) -> str:
    found = options.first(*names)
    if found is None:
        raise FlagError(f"{what} needs {' or '.join(names)}, which the installed llama-server does not have")
    return found


def _load_mode(options: Options, mode: str) -> list[str]:
    if not mode:
        return []
    if options.has("--load-mode"):
        return ["--load-mode", mode]
    # The fork and upstream before b10884 have a switch for each, and none for what they do by themselves.
    old: dict[str, list[str]] = {
        "auto": [],
        "mmap": ["--mmap"],
        "none": ["--no-mmap"],
        "mlock": ["--no-mmap", "--mlock"],
        "mmap+mlock": ["--mlock"],
        "dio": ["--direct-io"],
    }
    if mode not in old:
        raise FlagError(f"load_mode {mode!r}: the installed llama-server knows {', '.join(sorted(old))}")
    for name in old[mode]:
        _need(options, f"load_mode {mode!r}", name)
    return old[mode]


def command_line(options: Options, instance: dict[str, Any]) -> list[str]:
    """Return the words after llama-server. Instance is complete and checked (see _server_instance)."""
    words: list[str] = []

    def add(what: str, value: Any, *names: str) -> None:
        if value is not None and value != "":
            words.extend([_need(options, what, *names), str(value)])

    for which in ("cache_type_k", "cache_type_v"):
        name = "--" + which.replace("_", "-")
        allowed = options.allowed_values(name) if options.has(name) else []
        if allowed and instance[which] not in allowed:
            raise FlagError(f"{which} {instance[which]!r}: the installed llama-server knows {', '.join(allowed)}")

    add("model", instance["model_path"], "--model")
    add("alias", instance["alias"], "--alias")
    add("mmproj", instance.get("mmproj_path"), "--mmproj")
    add("host", instance["host"], "--host")
    if not instance["host"].endswith(".sock"):
        add("port", instance["port"], "--port")
    add("ctx_size", instance["ctx_size"], "--ctx-size")
    add("parallel", instance["parallel"], "--parallel")
    if instance["kv_unified"] is not None:
        word = "--kv-unified" if instance["kv_unified"] else "--no-kv-unified"
        words.append(_need(options, "kv_unified", word))
    add("cache_type_k", instance["cache_type_k"], "--cache-type-k")
    add("cache_type_v", instance["cache_type_v"], "--cache-type-v")
    add("flash_attn", instance["flash_attn"], "--flash-attn")
    add("batch_size", instance.get("batch_size"), "--batch-size")
    add("ubatch_size", instance.get("ubatch_size"), "--ubatch-size")
    add("threads", instance.get("threads"), "--threads")
    add("n_gpu_layers", instance.get("n_gpu_layers"), "--n-gpu-layers", "--gpu-layers")
    if instance["devices"]:
        add("devices", ",".join(instance["devices"]), "--device")
    words += _load_mode(options, instance["load_mode"])
    if options.has("--cache-ram"):
        words += ["--cache-ram", str(instance["cache_ram_mib"])]
    elif instance["cache_ram_mib"]:
        _need(options, "cache_ram_mib", "--cache-ram")
    # Unset values are otherwise changed by the server itself to what it thinks fits.
    if options.has("--fit"):
        words += ["--fit", "off"]
    reasoning = instance.get("reasoning") or {}
    add("reasoning.mode", reasoning.get("mode"), "--reasoning")
    add("reasoning.budget", reasoning.get("budget"), "--reasoning-budget")
    add("reasoning.format", reasoning.get("format"), "--reasoning-format")
    draft = instance.get("draft") or {}
    add("draft.model", draft.get("model_path"), "--spec-draft-model", "--model-draft")
    add("draft.max", draft.get("max"), "--spec-draft-n-max", "--draft-max")
    add("draft.min", draft.get("min"), "--spec-draft-n-min", "--draft-min")
    for key, names in (
        ("temperature", ("--temp",)),
        ("top_p", ("--top-p",)),
        ("top_k", ("--top-k",)),
        ("min_p", ("--min-p",)),
    ):
        add(f"sampling.{key}", (instance.get("sampling") or {}).get(key), *names)
    words.append(_need(options, "metrics", "--metrics"))
    closed = ["--no-webui" if options.has("--no-webui") else "--no-ui"]
    if not instance["slots"]:
        closed.append("--no-slots")
    closed.append("--offline")
    words += [name for name in closed if options.has(name)]
    if instance.get("cors_origins"):
        add("cors_origins", ",".join(instance["cors_origins"]), "--cors-origins")
    elif options.has("--cors-origins"):
        words += ["--cors-origins", "localhost"]
    # Newer builds print the sizes of the caches, which the gate reads, one level above the default.
    verbosity = options.by_name.get("--log-verbosity")
    if verbosity is not None and "trace (more info)" in verbosity.text:
        words += ["--log-verbosity", "4"]
    if options.has("--log-colors"):
        words += ["--log-colors", "off"]
    if instance["has_keys"]:
        words += [_need(options, "api_keys", "--api-key-file"), "%d/api-keys"]
    if instance["has_tls"]:
        words += [
            _need(options, "tls", "--ssl-key-file"),
            "%d/tls.key",
            _need(options, "tls", "--ssl-cert-file"),
            "%d/tls.crt",
        ]
    return words + check_extra_args(options, instance["extra_args"])
