# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_instance as rules
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances

KEY = "0123456789abcdef"


def one(**more):
    return {"name": "a", "model": "m.gguf", "port": 8080, "ctx_size": 4096, **more}


def complete(**more):
    return rules.complete(one(**more), llama_instances.DEFAULTS)


def test_what_an_instance_leaves_open():
    item = complete()
    assert item["host"] == "127.0.0.1"
    assert item["devices"] == ["none"]
    assert item["n_gpu_layers"] is None
    assert item["alias"] == "m.gguf"
    assert item["has_keys"] is False
    assert item["cache_ram_mib"] == 0


@pytest.mark.parametrize(("backend", "device"), [("cuda", "CUDA0"), ("rocm", "ROCm0"), ("vulkan", "Vulkan0")])
def test_a_gpu_is_named_so_that_a_missing_driver_is_an_error(backend, device):
    item = complete(backend=backend)
    assert item["devices"] == [device]
    assert item["n_gpu_layers"] == 999
    assert complete(backend=backend, devices=["X1"], n_gpu_layers="12")["n_gpu_layers"] == 12


@pytest.mark.parametrize("turbo", ["turbo2", "turbo3", "turbo4"])
def test_turbo_types_switch_flash_attention_on(turbo):
    assert complete(cache_type_v=turbo)["flash_attn"] == "on"
    assert complete(cache_type_k=turbo, flash_attn="auto")["flash_attn"] == "on"
    with pytest.raises(rules.InstanceError, match=f"{turbo} caches exist only with it"):
        complete(cache_type_k=turbo, flash_attn="off")


def test_presence_only_switches_are_left_out_when_false():
    assert complete(cuda_unified_memory=False, vk_prefer_host_memory=False)["environment"] == {}
    item = complete(cuda_unified_memory=True, turbo_layer_adaptive=0, env={"A": "b"})
    assert item["environment"] == {"A": "b", "GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1", "TURBO_LAYER_ADAPTIVE": "0"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": "A"}, "'A'"),
        ({"name": "../x"}, "'../x'"),
        ({"name": ""}, "''"),
        ({"port": 70000}, "port is 70000, but must be 1 to 65535.*modulo 65536"),
        ({"port": 0}, "port is 0"),
        ({"port": None}, None),
        ({"host": "0.0.0.0"}, "0.0.0.0 can be reached from other machines, but there is no API key"),
        ({"host": "::"}, "there is no API key"),
        ({"host": "gpu.example"}, "there is no API key"),
        ({"host": "a b"}, "neither an address nor a host name"),
        ({"host": "/tmp/x.sock"}, "/run/llamafleet/a/api.sock"),
        ({"backend": "metal"}, "cpu, cuda, rocm, vulkan"),
        ({"ctx_size": 0}, "ctx_size is 0, but must be at least 256"),
        ({"ctx_size": "many"}, "'many', but must be a whole number"),
        ({"parallel": 0}, "parallel is 0"),
        ({"parallel": True}, "True, but must be a whole number"),
        ({"cache_ram_mib": -1}, "no limit"),
        ({"flash_attn": "off", "cache_type_v": "q8_0"}, "needs flash_attn on; without it the server crashes"),
        ({"devices": ["CUDA0,CUDA1"]}, "not a name of llama-server --list-devices"),
        ({"n_gpu_layers": "auto"}, "give a number or all"),
        ({"api_keys": [""]}, "has 0 characters; give at least 16"),
        ({"api_keys": ["short"]}, "has 5 characters"),
        ({"api_keys": ["with a space in it"]}, "without spaces"),
        ({"api_keys": ["#" + KEY]}, "not beginning with #"),
        ({"api_keys": [KEY, KEY]}, "listed twice"),
        ({"tls": {"certificate": "/c"}}, "lacks the key; with one of the two llama-server would answer in clear text"),
        ({"tls": {"key_content": "k"}}, "lacks the certificate"),
        ({"tls": {"certificate": "c", "key": "/k"}}, "not an absolute path"),
        ({"tls": {"certificate": "/c", "certificate_content": "c", "key": "/k"}}, "give one"),
        ({"memory_max": "24 GB"}, "24G"),
        ({"allow_from": ["10.0.0.1/8"]}, "host bits set; write it like 10.0.0.0/8"),
        ({"start_timeout": 1}, "start_timeout is 1"),
        ({"state": "paused"}, "started, stopped, absent"),
        ({"turbo_layer_adaptive": 9}, "0 to 7"),
    ],
)
def test_what_is_refused(more, message):
    if message is None:
        assert complete(**more)["port"] == 8080
        return
    with pytest.raises(rules.InstanceError, match=message):
        complete(**more)


def test_a_message_never_shows_a_key():
    with pytest.raises(rules.InstanceError) as caught:
        complete(api_keys=["s3cret"])
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "/run/llamafleet/a/api.sock"])
def test_nobody_else_can_reach_these(host):
    assert complete(host=host)["has_keys"] is False


def test_a_network_address_needs_a_key_or_the_word():
    assert complete(host="0.0.0.0", api_keys=[KEY])["has_keys"] is True
    assert complete(host="0.0.0.0", allow_open=True)["has_keys"] is False


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ({}, {}, True),
        ({"host": "0.0.0.0", "api_keys": [KEY]}, {}, True),
        ({}, {"host": "::", "api_keys": [KEY]}, True),
        ({"host": "127.0.0.1"}, {"host": "127.0.0.2"}, False),
        ({}, {"port": 8081}, False),
        ({}, {"state": "stopped"}, False),
    ],
)
def test_an_address_belongs_to_one_instance(first, second, clash):
    pair = [one(**first), one(name="b", **second)] if "name" not in second else []
    if clash:
        with pytest.raises(rules.InstanceError, match="'a' and 'b' both listen on port 8080"):
            rules.complete_all(pair, llama_instances.DEFAULTS)
    else:
        assert len(rules.complete_all(pair, llama_instances.DEFAULTS)) == 2


def test_names_are_unique():
    with pytest.raises(rules.InstanceError, match="'a' is listed twice"):
        rules.complete_all([one(), one(port=8081)], llama_instances.DEFAULTS)


def test_models_have_to_be_listed():
    item = complete(mmproj="p.gguf", draft={"model": "d.gguf"})
    rules.model_paths(item, "/models", {"m.gguf": {}, "p.gguf": {}, "d.gguf": {}})
    assert item["model_path"] == "/models/m.gguf"
    assert item["mmproj_path"] == "/models/p.gguf"
    assert item["draft"]["model_path"] == "/models/d.gguf"
    with pytest.raises(rules.InstanceError, match=r"'m.gguf' is not in llama_model_files \(other.gguf\)"):
        rules.model_paths(complete(), "/models", {"other.gguf": {}})


@pytest.mark.parametrize(
    ("given", "least", "percent"),
    [("0", 0.0, 0.0), ("25", 25.0, 0.0), (7.5, 7.5, 0.0), ("50%", 0.0, 50.0), ("100%", 0.0, 100.0)],
)
def test_how_fast_it_has_to_be_is_a_number_or_a_part(given, least, percent):
    item = complete(min_tps=given)
    assert (item["min_tps"], item["min_tps_percent"]) == (least, percent)


@pytest.mark.parametrize("given", ["fast", "-1", "101%", "5 %", "", "1e3"])
def test_no_other_speed_is_taken(given):
    with pytest.raises(rules.InstanceError, match=f"min_tps {given!r} is neither a number of tokens per second"):
        complete(min_tps=given)
