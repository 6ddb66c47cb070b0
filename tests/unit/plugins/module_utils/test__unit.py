# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_instance, _unit
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances


def item(**more):
    raw = {"name": "a", "model": "m.gguf", "port": 8080, "ctx_size": 4096, **more}
    done = _server_instance.complete(raw, llama_instances.DEFAULTS)
    done["loopback"] = _server_instance.loopback(done["host"])
    done["watchdog"] = dict(llama_instances.WATCHDOG, **(done["watchdog"] or {}))
    done["tls_certificate_path"], done["tls_key_path"] = "/c", "/k"
    return done


def lines(flags=("--model", "/m.gguf"), groups=(), **more):
    return _unit.render_service(item(**more), "/opt/r", list(flags), "llamafleet", list(groups)).splitlines()


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("plain-1.0/x", "plain-1.0/x"),
        ("two words", '"two words"'),
        ("", '""'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("50%", "50%%"),
        ("$HOME", "$$HOME"),
        ("a;b", '"a;b"'),
        ("{'a': 1}", "\"{'a': 1}\""),
        ("line\nbreak", '"line\\\\nbreak"'.replace("\\\\n", "\\n")),
    ],
)
def test_words_survive_systemd(word, text):
    assert _unit.quoted(word) == text


def test_a_dollar_is_literal_in_the_environment_and_doubled_in_a_command():
    assert "Environment=A=$x%%" in lines(env={"A": "$x%"})
    assert _unit.quoted("$x%", variables=False) == "$x%%"


def test_each_option_stands_on_its_line_with_its_value():
    text = "\n".join(lines(flags=["--model", "/m m.gguf", "--metrics", "--api-key-file", "%d/api-keys"]))
    assert (
        "ExecStart=/opt/r/bin/llama-server \\\n    --model \"/m m.gguf\" \\\n    --metrics \\\n"
        "    --api-key-file %d/api-keys\n"
    ) in text  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "cuda", "rocm", "vulkan"])
def test_every_sandbox_closes_what_it_can(backend):
    text = lines(backend=backend, groups=[] if backend == "cpu" else ["render", "video"])
    for line in (
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "DevicePolicy=closed",
        "MemoryDenyWriteExecute=yes",
        "LimitCORE=0",
        "SystemCallFilter=@system-service",
        "IPAddressDeny=any",
        "Environment=GGML_NO_BACKTRACE=1",
    ):
        assert line in text
    assert not any(line.startswith("LoadCredential") for line in text)


def test_gpus_get_their_devices_and_no_more():
    cuda = lines(backend="cuda")
    assert "DeviceAllow=char-nvidia-uvm rw" in cuda
    assert "DeviceAllow=char-kfd rw" not in cuda
    assert "SystemCallFilter=~@privileged" in cuda
    rocm = lines(backend="rocm", groups=["render", "video"])
    assert "DeviceAllow=char-kfd rw" in rocm
    assert "SupplementaryGroups=render video" in rocm
    cpu = lines()
    assert "PrivateDevices=yes" in cpu
    assert "SystemCallFilter=~@privileged @resources" in cpu
    assert not any(line.startswith(("DeviceAllow", "SupplementaryGroups")) for line in cpu)


def test_software_vulkan_may_execute_what_it_compiles():
    assert "MemoryDenyWriteExecute=no" in lines(backend="vulkan", jit=True)


def test_memory_and_locks():
    assert "MemoryMax=24G" in lines(memory_max="24G")
    assert "MemoryMax=infinity" in lines(memory_max="infinity")
    # auto that found no plan.
    assert not any(line.startswith("MemoryMax") for more in ("auto", "") for line in lines(memory_max=more))
    assert "LimitMEMLOCK=infinity" in lines(load_mode="mlock")
    assert not any(line.startswith(("MemoryMax", "LimitMEMLOCK")) for line in lines())


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ({}, ["localhost"]),
        (
            {"host": "10.1.2.3", "allow_open": True, "allow_from": ["10.0.0.0/8"]},
            ["localhost", "10.0.0.0/8", "10.1.2.3"],
        ),
        ({"host": "0.0.0.0", "allow_open": True, "allow_from": ["10.0.0.0/8"]}, ["localhost", "10.0.0.0/8"]),
        ({"host": "0.0.0.0", "allow_open": True}, None),
    ],
)
def test_who_may_send_packets(more, allowed):
    found = [line.partition("=")[2].split() for line in lines(**more) if line.startswith("IPAddressAllow=")]
    assert found == ([] if allowed is None else [allowed])


def test_keys_reach_the_service_as_a_credential_and_an_empty_file_stops_it():
    text = lines(api_keys=["0123456789abcdef"])
    assert "LoadCredential=api-keys:/etc/llamafleet/instances/a/api-keys" in text
    assert "ExecStartPre=/usr/bin/python3 /opt/llamafleet/libexec/llama_probe.py keys --name a" in text
    assert not any(line.startswith("ExecStartPre") for line in lines())
    assert not any("0123456789abcdef" in line for line in text)


def test_the_stop_waits_longer_than_the_drain():
    text = lines(drain_timeout=120)
    assert "TimeoutStopSec=150" in text
    assert any(line.startswith("ExecStop=+") and line.endswith("--timeout 120") for line in text)


@pytest.mark.parametrize("start", [5, 60, 300, 3600])
@pytest.mark.parametrize("drain", [0, 60, 900])
@pytest.mark.parametrize("fails_after", [0.0, 0.5, 1.0])
def test_a_load_loop_ends_however_long_a_load_takes_to_fail(start, drain, fails_after):
    """Reckoned from the unit alone, as systemd does (man systemd.service, RestartSteps; systemd.unit, StartLimit)."""
    unit = dict(line.split("=", 1) for line in lines(start_timeout=start, drain_timeout=drain) if "=" in line)
    first, last, steps = (float(unit[key]) for key in ("RestartSec", "RestartMaxDelaySec", "RestartSteps"))
    burst = int(unit["StartLimitBurst"])
    now = 0.0
    for number in range(burst):
        now += fails_after * (float(unit["TimeoutStartSec"]) + float(unit["TimeoutStopSec"]))
        now += min(last, first * (last / first) ** (number / steps))
    # The start after these is refused only when the first of them still counts.
    assert now < float(unit["StartLimitIntervalSec"]) - 30


def test_the_limit_of_starts_is_what_the_documentation_says():
    assert f"StartLimitIntervalSec={37 * 60}" in lines()


def test_a_socket_is_probed_by_its_path():
    text = lines(host="/run/llamafleet/a/api.sock")
    assert any("--socket /run/llamafleet/a/api.sock" in line for line in text if line.startswith("ExecStartPost"))
    assert "IPAddressDeny=any" in text
    assert not any(line.startswith("IPAddressAllow") for line in text)


def test_the_watchdog_can_be_declined():
    files = _unit.render_watchdog(item())
    assert set(files) == {"llama-watchdog@a.service", "llama-watchdog@a.timer"}
    assert "--failures 3" in files["llama-watchdog@a.service"]
    assert _unit.render_watchdog(item(watchdog={"enabled": False})) == {}
