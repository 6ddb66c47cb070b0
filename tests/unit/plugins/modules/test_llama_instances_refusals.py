# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module refuses before it changes anything, on a host made of folders; the scenarios have real ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_plan, _unit
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances
from ansible_collections.llamafleet.turboquant.tests.unit import gguf_writer
from ansible_collections.llamafleet.turboquant.tests.unit.plugins.module_utils import oracle

KEY = "0123456789abcdef"
SERVER = "#!/bin/sh\necho '-m, --model FNAME  model path'\n"


class Worker(llama_instances.Worker):
    def groups(self, backend):
        return []


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Return what makes a Worker of parameters; its paths lie below a folder of the test."""
    for name in ("UNITS", "CREDENTIALS", "STATE", "LOCKS"):
        monkeypatch.setattr(llama_instances, name, tmp_path / name.lower())
    monkeypatch.setattr(llama_instances, "FIREWALL", tmp_path / "state" / ".firewall")
    monkeypatch.setattr(_unit, "PROBE", str(tmp_path / "probe.py"))
    monkeypatch.setattr(llama_instances.pwd, "getpwnam", lambda name: None)
    monkeypatch.setattr(Worker, "check_port", lambda self, item, ours: None)
    models = tmp_path / "models"
    models.mkdir()

    def worker(instance, **params):
        spec = dict.fromkeys(("plan_devices", "plan_ram_bytes"))
        defaults = {
            "instances": [{"name": "chat", "model": "m.gguf", "port": 8080, "ctx_size": 512, **instance}],
            "defaults": {}, "models": [], "model_dir": str(models), "release": str(tmp_path / "release"),
            "user": "llamafleet", "textfile_directory": "", "plan": True, "build": "turboquant-69d8e4be",
            "gtt_pending_bytes": 0, "trial": "auto", "gate": True, "verify": False,
        }  # fmt: skip
        module = SimpleNamespace(
            params={**spec, **defaults, **params},
            check_mode=True,
            tmpdir=str(tmp_path),
            run_command=lambda words, **more: (0, worker.help if words[-1] == "--help" else "", ""),
            warn=worker.warned.append,
        )
        return Worker(module)

    worker.models, worker.warned, worker.help, worker.root = models, [], "", tmp_path
    worker.written = lambda: sorted(
        path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".gguf"
    )
    return worker


def endless(tokens):
    """A whole Gemma 4 whose vocabulary has only these of the tokens that end something."""
    writer = gguf_writer.Writer()
    metadata, tensors = gguf_writer.small_model(writer)
    metadata.update(gguf_writer.vocabulary(writer, 200, named=tokens))
    metadata["tokenizer.ggml.eos_token_id"] = min(tokens, default=5000)
    return writer.file(metadata, tensors)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({}, "no token ends generation: every answer would go on"),
        ({1: "<eos>", 50: "<|tool_response>"}, r"gemma4 ends its turns with <turn\|>, which is no token of this file"),
    ],
)
@pytest.mark.parametrize(
    "params",
    [
        {},
        # Of a GPU whose memory cannot be read, and of a build that the planner does not know.
        {"instance": {"backend": "cuda"}},
        {"build": "auto"},
    ],
)
def test_a_model_whose_answers_would_not_end_is_refused_with_advice(host, tokens, said, params):
    (host.models / "m.gguf").write_bytes(endless(tokens))
    more = dict(params)
    worker = host(more.pop("instance", {}), **more)
    with pytest.raises(llama_instances.Failure, match=rf"m\.gguf: .*{said}.*; fetch the fixed file, which is a later"):
        worker.prepare()
    assert host.written() == []


def test_a_model_with_its_tokens_passes_that_check(host):
    (host.models / "m.gguf").write_bytes(endless(gguf_writer.GEMMA4_END))
    (instance,) = host({}, build="auto").prepare()
    assert instance.name == "chat"


def test_a_port_is_refused_before_anything_is_written(host, monkeypatch):
    monkeypatch.setattr(llama_instances._firewall.shutil, "which", lambda name, path: None)
    asked = {"host": "0.0.0.0", "api_keys": [KEY], "firewall": {"sources": ["10.0.0.0/8"]}}
    with pytest.raises(llama_instances._firewall.FirewallError, match="firewalld does not run on this host"):
        host(asked, plan=False).prepare()
    assert host.written() == []


def test_a_port_changes_nothing_of_what_the_plan_chose(host):
    (host.models / "m.gguf").write_bytes(b"GGUF")
    item = {"name": "chat", "model_path": str(host.models / "m.gguf")}
    keys = {
        llama_instances.choice_key({**item, **more}, host.models, "b", {"plan_devices": None, "plan_ram_bytes": 1})
        for more in ({}, {"firewall": None}, {"firewall": {"zone": "work"}})
    }
    assert len(keys) == 1
    assert len(keys.pop()) == len(hashlib.sha256().hexdigest())


HELP = (Path(__file__).parents[3] / "data" / "llama-server" / "help-b10434.txt").read_text(encoding="utf-8")
# As the fork is: it answers every origin, and no option limits that.
OLDER = HELP.replace("--cors-", "--older-")


def install(host, name, text=OLDER):
    binary = host.root / "releases" / name / "bin" / "llama-server"
    binary.parent.mkdir(parents=True)
    binary.write_text(SERVER)
    host.help = text
    return str(binary.parents[1])


@pytest.mark.parametrize(
    ("instance", "text", "warned"),
    [
        ({}, OLDER, True),
        ({"host": "0.0.0.0", "allow_open": True}, OLDER, True),
        ({"api_keys": [KEY]}, OLDER, False),
        ({"host": "/run/llamafleet/chat/a.sock"}, OLDER, False),
        ({"state": "stopped"}, OLDER, False),
        ({}, HELP, False),
    ],
)
def test_an_open_server_that_answers_every_web_page_is_named_with_the_cure(host, instance, text, warned):
    release = install(host, "one", text)
    host(instance, release=release, plan=False).prepare()
    assert len(host.warned) == warned
    for word in ("'chat'", "no --cors-origins", "every web page", "list api_keys") if warned else ():
        assert word in host.warned[0]


def unit_text(instance):
    return next(text for path, text in instance.files.items() if path.name.startswith("llama-server@")).decode()


def test_before_an_upgrade_the_diff_has_the_options_of_the_current_release(host):
    (host.root / "current").symlink_to(install(host, "old"))
    coming = str(host.root / "releases" / "new")
    (instance,) = host({"api_keys": [KEY]}, release=coming, plan=False).prepare()
    assert f"ExecStart={coming}/bin/llama-server" in unit_text(instance)
    assert "--ctx-size 512" in unit_text(instance)
    (said,) = host.warned
    assert said.startswith(f"{coming} is not on the host yet: ")
    assert str(host.root / "releases" / "old") in said


def test_what_only_the_coming_release_may_know_is_no_reason_to_fail_before_an_upgrade(host):
    (host.root / "current").symlink_to(install(host, "old"))
    coming = str(host.root / "releases" / "new")
    asked = {"api_keys": [KEY], "extra_args": ["--of-the-future"]}
    (instance,) = host(asked, release=coming, plan=False).prepare()
    assert "(the current release refuses: extra_args: --of-the-future" in unit_text(instance)
    # Of the release that is there, it is a refusal.
    with pytest.raises(llama_instances.Failure, match="does not know it"):
        host(asked, release=str(host.root / "releases" / "old"), plan=False).prepare()


def test_on_a_bare_host_nothing_is_foretold(host):
    (instance,) = host({"api_keys": [KEY]}, release=str(host.root / "releases" / "new"), plan=False).prepare()
    assert "(rendered for the binary when it is installed)" in unit_text(instance)
    assert host.warned == []


def test_check_mode_counts_on_the_kernels_of_a_release_that_is_still_to_come(host, tmp_path, monkeypatch):
    (host.models / "m.gguf").write_bytes(endless(gguf_writer.GEMMA4_END))
    monkeypatch.setattr(_server_plan, "read_header", lambda path, build: oracle.header("llama31-8b-real"))
    card = {"name": "CUDA0", "backend": "cuda", "total_gib": 24}
    asked = {"backend": "cuda", "cache_type_k": "f16", "cache_type_v": "q8_0"}
    (instance,) = host(asked, plan_devices=[card], plan_ram_bytes=64 << 30).prepare()
    assert instance.name == "chat"
    (tmp_path / "release").mkdir()
    monkeypatch.setattr(Worker, "options", lambda self: None)
    with pytest.raises(llama_instances.Failure, match="f16/q8_0"):
        host(asked, plan_devices=[card], plan_ram_bytes=64 << 30).prepare()
