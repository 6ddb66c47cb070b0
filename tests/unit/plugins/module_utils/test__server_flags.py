# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_flags as flags
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances

DATA = Path(__file__).parents[3] / "data" / "llama-server"


@pytest.fixture(scope="module")
def new():
    return flags.parse_help((DATA / "help-b10434.txt").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fork():
    return flags.parse_help((DATA / "help-turboquant-69d8e4be.txt").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bare():
    """A server that lacks what the others have."""
    text = (DATA / "help-turboquant-69d8e4be.txt").read_text(encoding="utf-8")
    return flags.parse_help(text.replace("--direct-io", "--no-such-io").replace("--ssl-key-file", "--no-such-key"))


def instance(**more):
    return {
        "name": "a", "model_path": "/m.gguf", "alias": "m", "host": "127.0.0.1", "port": 8080, "ctx_size": 4096,
        "parallel": 1, "kv_unified": None, "cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attn": "on",
        "devices": [], "load_mode": "", "cache_ram_mib": 0, "slots": False, "has_keys": False, "has_tls": False,
        "extra_args": [], **more,
    }  # fmt: skip


def test_the_help_of_a_real_server(new):
    assert len(new.entries) > 240
    assert new.by_name["--override-tensor"].hint == "<tensor name pattern>=<buffer type>,..."
    assert new.by_name["-nkvo"] is new.by_name["--kv-offload"]
    assert new.by_name["--kv-offload"].values == 0
    assert new.by_name["--control-vector-layer-range"].values == 2
    assert new.by_name["--lora-scaled"].values == 1
    assert new.by_environment["LLAMA_ARG_CTX_SIZE"].names == ("-c", "--ctx-size")
    assert new.allowed_values("--cache-type-k") == [
        "f32",
        "f16",
        "bf16",
        "q8_0",
        "q4_0",
        "q4_1",
        "iq4_nl",
        "q5_0",
        "q5_1",
    ]


def test_options_that_are_listed_only_to_fail_are_gone(new):
    assert "--draft-max" in new.by_name
    assert not new.has("--draft-max")
    assert new.first("--spec-draft-n-max", "--draft-max") == "--spec-draft-n-max"


def test_what_is_not_the_help_of_a_server_is_refused():
    with pytest.raises(flags.FlagError, match="names neither --model nor --port"):
        flags.parse_help("usage: something else\n--help   text")


@pytest.mark.parametrize("backend", llama_instances.SETTINGS_SPEC["backend"]["choices"])
def test_every_build_understands_what_is_set_where_an_operator_says_nothing(fork, new, backend):
    for options in (fork, new):
        words = flags.command_line(options, instance(**{**llama_instances.DEFAULTS, "backend": backend}))
        assert [word for word in words if word.startswith("--") and not options.has(word)] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("flash_attn", "load_mode") for value in llama_instances.SETTINGS_SPEC[name]["choices"]]
    + [
        ("reasoning", {key: value})
        for key in ("mode", "format")
        for value in llama_instances.SETTINGS_SPEC["reasoning"]["options"][key]["choices"]
    ],
)
def test_every_build_understands_each_choice(fork, new, name, value):
    for options in (fork, new):
        words = flags.command_line(options, instance(**{name: value}))
        assert [word for word in words if word.startswith("--") and not options.has(word)] == []


@pytest.mark.parametrize(
    ("mode", "old", "newer"),
    [
        ("none", ["--no-mmap"], ["--load-mode", "none"]),
        ("mmap", ["--mmap"], ["--load-mode", "mmap"]),
        ("mlock", ["--no-mmap", "--mlock"], ["--load-mode", "mlock"]),
        ("mmap+mlock", ["--mlock"], ["--load-mode", "mmap+mlock"]),
        ("dio", ["--direct-io"], ["--load-mode", "dio"]),
        ("auto", [], ["--load-mode", "auto"]),
        ("", [], []),
    ],
)
def test_load_mode_is_spelled_as_the_binary_spells_it(fork, new, mode, old, newer):
    def picked(options):
        words = flags.command_line(options, instance(load_mode=mode))
        return words[words.index("q8_0") + 5 : words.index("--cache-ram")]

    assert picked(fork) == old
    assert picked(new) == newer


def test_a_load_mode_that_the_binary_lacks_is_refused(bare):
    with pytest.raises(flags.FlagError, match=r"needs --direct-io, which the installed llama-server does not have"):
        flags.command_line(bare, instance(load_mode="dio"))


def test_the_draft_model_is_spelled_as_the_binary_spells_it(fork, new):
    draft = {"model_path": "/d.gguf", "max": 8}
    assert "--draft-max 8" in " ".join(flags.command_line(fork, instance(draft=draft)))
    line = " ".join(flags.command_line(new, instance(draft=draft)))
    assert "--spec-draft-model /d.gguf --spec-draft-n-max 8" in line
    assert "--draft-max" not in line


def test_everything_that_is_open_by_default_is_closed(new, fork):
    for options in (new, fork):
        words = flags.command_line(options, instance())
        assert {"--no-webui", "--no-slots", "--offline", "--metrics"} <= set(words)
        assert words[words.index("--fit") + 1] == "off"
        assert words[words.index("--cache-ram") + 1] == "0"
    assert "--no-slots" not in flags.command_line(new, instance(slots=True))


def test_cross_origin_requests_are_limited_where_the_binary_can(new, fork):
    words = flags.command_line(new, instance())
    assert words[words.index("--cors-origins") + 1] == "localhost"
    assert "--cors-origins" not in flags.command_line(fork, instance())
    with pytest.raises(flags.FlagError, match="cors_origins needs --cors-origins"):
        flags.command_line(fork, instance(cors_origins=["https://a.example"]))


def test_the_log_is_verbose_enough_for_the_gate_and_no_more(new, fork):
    words = flags.command_line(new, instance())
    assert words[words.index("--log-verbosity") + 1] == "4"
    # In the fork level 4 is debug, which writes prompts; level 3 has the sizes.
    assert "--log-verbosity" not in flags.command_line(fork, instance())


def test_a_cache_type_that_the_binary_lacks_is_refused(new, fork):
    assert "turbo4" in flags.command_line(fork, instance(cache_type_v="turbo4"))
    with pytest.raises(flags.FlagError, match=r"cache_type_v 'turbo4': the installed llama-server knows f32, f16"):
        flags.command_line(new, instance(cache_type_v="turbo4"))


def test_keys_and_tls_are_named_by_their_credentials(new, bare):
    words = flags.command_line(new, instance(has_keys=True, has_tls=True))
    assert words[-6:] == [
        "--api-key-file", "%d/api-keys", "--ssl-key-file", "%d/tls.key", "--ssl-cert-file", "%d/tls.crt"
    ]  # fmt: skip
    with pytest.raises(flags.FlagError, match="--ssl-key-file"):
        flags.command_line(bare, instance(has_tls=True))


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        (["--threads-http", "4", "--no-warmup"], ["--threads-http", "4", "--no-warmup"]),
        (["-ncmoe", "12"], ["-ncmoe", "12"]),
        (["--no-context-shift"], ["--no-context-shift"]),
        (["--override-tensor", "exps=CPU"], ["--override-tensor", "exps=CPU"]),
        (["--control-vector-layer-range", "1", "2"], ["--control-vector-layer-range", "1", "2"]),
        ([], []),
    ],
)
def test_additional_words(new, arguments, result):
    assert flags.check_extra_args(new, arguments) == result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such"], "does not know it"),
        (["--tread"], "near: .*--threads"),
        (["--draft-max", "4"], "argument has been removed"),
        (["4"], "'4' is not an option"),
        (["--threads-http"], "needs N, but nothing follows"),
        (["--threads-http=4"], "write '--threads-http', '4'"),
        (["--port", "1"], "instance's variable port"),
        (["-c", "1"], "instance's variable ctx_size"),
        (["--no-mmap"], "instance's variable load_mode"),
        (["--api-key", "k"], "instance's variable api_keys"),
        (["--tools", "all"], "shell and files"),
        (["-ag"], "CORS proxy"),
        (["--props"], "global settings"),
        (["--context-shift"], "24786"),
        (["--sleep-idle-seconds", "5"], "CVE-2026-43631"),
        (["--models-dir", "/x"], "router"),
        (["-hf", "a/b"], "unproved model"),
        (["--gpt-oss-20b-default"], "unproved model"),
        (["--rpc", "h:1"], "unsafe"),
        (["-v"], "prompts of clients"),
    ],
)
def test_additional_words_that_are_refused(new, arguments, message):
    with pytest.raises(flags.FlagError, match=message):
        flags.check_extra_args(new, arguments)


def test_the_environment_that_is_left_alone(new):
    given = {"TURBO_LAYER_ADAPTIVE": 0, "GGML_CUDA_NO_PINNED": "1"}
    assert flags.check_environment(new, given) == {"TURBO_LAYER_ADAPTIVE": "0", "GGML_CUDA_NO_PINNED": "1"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LLAMA_ARG_CTX_SZE": "1"}, "unknown.*ignore it.*near: LLAMA_ARG_CTX_SIZE"),
        ({"LLAMA_ARG_CTX_SIZE": "1"}, "instance's variable ctx_size"),
        ({"LLAMA_ARG_THREADS_HTTP": "1"}, "belongs into extra_args as --threads-http"),
        ({"LLAMA_API_KEY": "k"}, "secret"),
        ({"HF_TOKEN": "k"}, "secret"),
        ({"GGML_CUDA_ENABLE_UNIFIED_MEMORY": "OFF"}, "would switch it on"),
        ({"GGML_VK_PREFER_HOST_MEMORY": 0}, "would switch it on"),
        ({"A B": "x"}, "not a name"),
        ({"A": "x\ny"}, "line break"),
    ],
)
def test_the_environment_that_is_refused(new, environment, message):
    with pytest.raises(flags.FlagError, match=message):
        flags.check_environment(new, environment)
