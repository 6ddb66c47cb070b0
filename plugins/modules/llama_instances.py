#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_instances
short_description: Keep exactly the listed llama-server instances running on a host
version_added: 1.0.0
description:
  - Makes one systemd unit, C(llama-server@NAME.service), for each listed instance and removes those it made that are no
    longer listed. Nothing is written before the whole list has been checked, against the rules and against the host.
  - The command line is made for the binary that is installed, from its own C(--help).
  - Only what changed is restarted, each instance drained first. After a restart an instance has to pass the gate, which
    is to decode tokens through the API with its key, to refuse a wrong key, to lie on the GPU, and to have allocated
    what was predicted. When one fails, all instances changed in this run go back to the units, settings and release
    they had, are started again, and the module fails with the server's last lines.
  - What passed the gate is recorded in C(/var/lib/llamafleet/state), so that a run that was killed is caught up by the
    next.
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
attributes:
  check_mode:
    support: full
    details: Flags are checked against the binary only where it is installed already.
  diff_mode:
    support: full
    details: API keys and private keys are never shown; the diff says how many there are and that they changed.
  idempotent:
    support: full
options:
  defaults:
    description: Settings for instances that do not name them.
    type: dict
    default: {}
    suboptions: &settings
      mmproj:
        description:
          - Name of the multimodal projector, an entry of C(llama_model_files). It costs GPU memory of about its size.
        type: str
      alias:
        description:
          - Name under which the API shows the model. The name of the file when it is not set.
        type: str
      host:
        description:
          - Address to listen on, or a socket below C(/run/llamafleet/NAME/) that ends in C(.sock). V(127.0.0.1)
            unless set; any other than a loopback address needs keys.
        type: str
      port:
        description:
          - TCP port, 1 to 65535, different for each instance of a host.
        type: int
      backend:
        description:
          - What computes. Decides the sandbox, the devices that are named, and whether the gate asks for buffers on a
            GPU.
        type: str
        choices: [cpu, cuda, rocm, vulkan]
      ctx_size:
        description:
          - Context in tokens, all slots together, or V(auto) for the largest that the plan allows on this host.
        type: raw
      cache_type_k:
        description:
          - Type of the K cache, for example V(f16), V(q8_0), V(turbo4), or V(auto) for the plan's choice.
        type: str
      cache_type_v:
        description:
          - Type of the V cache, as O(instances[].cache_type_k).
        type: str
      flash_attn:
        description:
          - Flash attention. Always V(on) with turbo types, which exist only with it.
        type: str
        choices: ['on', 'off', auto]
      parallel:
        description:
          - Number of slots, that is of requests worked on at once. They share the context. V(1) unless set.
        type: int
      kv_unified:
        description:
          - One cache for all slots (true) or one for each (false). The program decides when it is not set.
        type: bool
      batch_size:
        description:
          - Logical batch in tokens.
        type: int
      ubatch_size:
        description:
          - Physical batch in tokens. More makes long prompts faster and the compute buffers larger, about linearly.
        type: int
      threads:
        description:
          - Threads for computing on the CPU.
        type: int
      n_gpu_layers:
        description:
          - Layers on the GPU, a number or V(all). V(all) unless set, with a GPU.
        type: str
      devices:
        description:
          - Devices by the names of C(llama-server --list-devices). The backend's first one unless set. They are
            always named, so that a missing driver is an error and not a slow server on the CPU.
        type: list
        elements: str
      load_mode:
        description:
          - How the file is brought into memory. Rendered as the binary spells it.
        type: str
        choices: [auto, mmap, none, mlock, mmap+mlock, dio]
      cache_ram_mib:
        description:
          - Memory of the host for prompts to come back to, in MiB. V(0), off, unless set; the program's own default
            of 8192 has ended many hosts. A O(instances[].memory_max) in figures has to allow for it.
        type: int
      slots:
        description:
          - >-
            Show what each slot does at C(/slots). Off unless set: it shows requests to everybody with a key.
        type: bool
      cors_origins:
        description:
          - Web origins that may call the API from a browser, where the binary can limit them. None but localhost
            unless set.
        type: list
        elements: str
      reasoning:
        description:
          - Thinking of models that can (Gemma 4 and others).
        type: dict
        suboptions:
          mode:
            description:
              - Whether the model thinks before it answers.
            type: str
            choices: ['on', 'off', auto]
          budget:
            description:
              - Tokens it may think; V(-1) is no limit, V(0) ends at once.
            type: int
          format:
            description:
              - Where thoughts stand in the answer. With V(none) they come back in the content and so into the
                history.
            type: str
            choices: [none, deepseek, deepseek-legacy, auto]
      sampling:
        description:
          - Sampling for requests that do not say. The values of the model file, where it has some, unless set.
        type: dict
        suboptions:
          temperature:
            description:
              - Temperature.
            type: float
          top_p:
            description:
              - Top-p.
            type: float
          top_k:
            description:
              - Top-k.
            type: int
          min_p:
            description:
              - Min-p.
            type: float
      draft:
        description:
          - Speculative decoding with a smaller model. Rendered as the binary spells it.
        type: dict
        suboptions:
          model:
            description:
              - Name of the draft model, an entry of C(llama_model_files).
            type: str
            required: true
          max:
            description:
              - Most tokens to draft.
            type: int
          min:
            description:
              - Least tokens to draft.
            type: int
      turbo_layer_adaptive:
        description:
          - C(TURBO_LAYER_ADAPTIVE) of the fork, V(0) to V(7). V(0) switches off the larger first and last layers that
            it uses with turbo2.
        type: int
      cuda_unified_memory:
        description:
          - >-
            C(GGML_CUDA_ENABLE_UNIFIED_MEMORY): spill into the host's memory instead of failing. Slow.
        type: bool
      vk_prefer_host_memory:
        description:
          - >-
            C(GGML_VK_PREFER_HOST_MEMORY): allocate in the host's memory first; for integrated GPUs.
        type: bool
      env:
        description:
          - Further variables of the environment. C(LLAMA_ARG_*) is refused, for the program ignores unknown names and
            overrides known ones.
        type: dict
      extra_args:
        description:
          - Further words of the command line, each option known to the installed binary, its value the next word.
            Options that are set by variables or that endanger the host are refused.
        type: list
        elements: str
      api_keys:
        description:
          - Keys of which clients have to present one, each of at least 16 characters. Keep them in a vault. They are
            placed below C(/etc/llamafleet/instances), mode 0400, and reach the service by LoadCredential.
        type: list
        elements: str
      tls:
        description:
          - Certificate and key, both or none; that they make a pair is checked. A changed file is taken up at the
            next run.
        type: dict
        suboptions:
          certificate:
            description:
              - PEM file with the certificate chain on the host.
            type: path
          key:
            description:
              - PEM file with the private key on the host.
            type: path
          certificate_content:
            description:
              - The certificate chain itself, instead of a file.
            type: str
          key_content:
            description:
              - The private key itself, from a vault, instead of a file.
            type: str
      allow_open:
        description:
          - Listen on a network address without keys. Everybody who can reach it can use it.
        type: bool
      allow_from:
        description:
          - Networks whose packets reach the service, such as V(10.0.0.0/8); all unless set. Done by systemd, besides
            any firewall.
        type: list
        elements: str
      firewall:
        description:
          - Let the instance's port through firewalld, at once and for good. Nothing is opened unless set, and what was
            opened is closed when it is not set any more. firewalld has to run, and O(instances[].host) to be an address
            of the network. V({}) asks for nothing, against O(defaults).
        type: dict
        suboptions:
          zone:
            description:
              - Zone of the rules. firewalld's default zone unless set.
            type: str
          sources:
            description:
              - Networks that reach the port, such as V(10.0.0.0/8). Everybody in the zone unless set.
            type: list
            elements: str
      memory_max:
        description:
          - Most memory of the host, such as V(24G), C(MemoryMax) of the unit. With mmap the file's pages count while
            they are in use.
          - V(auto), which it is unless set, takes all that the plan predicts and a quarter more, at least 2 GiB, and
            1 GiB for each GPU. Without a prediction there is no limit. V(infinity) is none either.
        type: str
      oom_score_adjust:
        description:
          - How readily the kernel ends this service when memory runs out, -1000 to 1000. Memory that the GPU maps is
            not counted, so it is high (500) unless set.
        type: int
      start_timeout:
        description:
          - Seconds that loading may take. V(300) unless set.
        type: int
      drain_timeout:
        description:
          - Seconds to wait for running requests before a stop. V(60) unless set.
        type: int
      jit:
        description:
          - Allow memory that is written and then executed. Only software Vulkan (llvmpipe) needs it, and crashes
            without.
        type: bool
      max_graph_splits:
        description:
          - Most graph splits with a GPU; more means that operations fall back to the CPU. V(8) unless set; raise it
            for experts kept on the CPU.
        type: int
      min_tps:
        description:
          - Tokens per second that the gate asks for, such as V(25), or a part of what the release before decoded with
            the same settings, where that is known, such as V(50%). A slower one is measured three times before it
            counts. V(0) unless set, which asks for nothing.
          - Changed alone it starts nothing; O(verify) holds the number against what runs.
        type: str
      watchdog:
        description:
          - A timer that decodes one token and restarts a server that cannot any more.
        type: dict
        suboptions:
          enabled:
            description:
              - Have one at all. On unless set.
            type: bool
          interval:
            description:
              - Seconds between probes. V(60) unless set.
            type: int
          timeout:
            description:
              - Seconds that one token may take. V(90) unless set.
            type: int
          failures:
            description:
              - Failed probes in a row before a restart. V(3) unless set.
            type: int
          grace:
            description:
              - Seconds after a start without probes. V(300) unless set.
            type: int
          cooldown:
            description:
              - Least seconds between two restarts. V(1800) unless set.
            type: int
      state:
        description:
          - V(started) unless set; V(stopped) keeps the unit, V(absent) is as if it were not listed.
        type: str
        choices: [started, stopped, absent]
  instances:
    description:
      - The instances. What one leaves out is taken from O(defaults).
    type: list
    elements: dict
    required: true
    suboptions:
      <<: *settings
      name:
        description:
          - Name of the instance; its unit is C(llama-server@NAME.service). Lower-case letters, digits and C(. _ -).
        type: str
        required: true
      model:
        description:
          - Name of the model file, an entry of C(llama_model_files).
        type: str
        required: true
  models:
    description: The listed model files, C(name), C(sha256) and, where known, C(bytes). An instance may use only these.
    type: list
    elements: dict
    default: []
  model_dir:
    description: Where the model files lie.
    type: path
    default: /var/lib/llamafleet/models
  release:
    description:
      - The installed release, usually a link. Units name what it points to, so a crash never starts another release.
    type: path
    default: /opt/llamafleet/current
  user:
    description: System user that the instances run as. It has to exist.
    type: str
    default: llamafleet
  gate:
    description: Put each started instance through the gate. Without it an instance counts as done when it is ready.
    type: bool
    default: true
  trial:
    description:
      - Start a changed instance beside the running one first, on a port of its own, and put it through the gate there.
        What does not start or decode is then found before the running one is touched.
      - V(auto) does so where the plan says that there is memory for both; V(never) switches at once.
    type: str
    choices: [auto, never]
    default: auto
  gate_timeout:
    description: Seconds that the gate's request may take.
    type: int
    default: 120
  textfile_directory:
    description:
      - Directory of node_exporter's textfile collector, which has to exist. Figures of the last gate, and those of each
        watchdog, are written there for Prometheus. Empty writes none and removes what was written.
    type: str
    default: ""
  verify:
    description:
      - Change nothing. Put what runs through the whole gate and compare the host with the list; what is wrong stands in
        RV(instances[].problems).
    type: bool
    default: false
  plan:
    description:
      - Predict what each instance allocates, choose what is V(auto), refuse what does not run, let the gate compare.
      - It needs a build that the planner knows; with any other there is no prediction, and V(auto) is refused.
    type: bool
    default: true
  build:
    description: The planner's name of the installed build, or V(auto) to take it from the release's manifest.
    type: str
    default: auto
  plan_devices:
    description:
      - The host's GPUs and their memory, as P(llamafleet.turboquant.planning_devices#filter) returns them, or with
        C(total_gib) and C(free_gib). Read from the host unless set.
    type: list
    elements: dict
  plan_ram_bytes:
    description: Memory of the host that the instances may take together. Most of what the machine has unless set.
    type: int
  gtt_pending_bytes:
    description:
      - RAM in bytes that the GPU of an APU may map after a reboot that is still to come. Instances are planned with it,
        and those that do not fit into the present limit are held back until then. The others are started. V(0) where no
        reboot is due.
    type: int
    default: 0
  tolerance:
    description:
      - How far all buffers together may be from the prediction, as a fraction. The caches may not differ at all.
    type: float
    default: 0.05
author:
  - llamafleet contributors (@llamafleet)
"""

EXAMPLES = r"""
- name: One small model on the CPU
  llamafleet.turboquant.llama_instances:
    instances:
      - name: chat
        model: smollm2.gguf
        port: 8080
        ctx_size: 4096
    models:
      - name: smollm2.gguf
        sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  become: true
"""

RETURN = r"""
instances:
  description: Each instance and how it stands.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The instance.
      type: str
      returned: always
    action:
      description: V(created), V(updated), V(restarted), V(stopped), V(removed) or V(unchanged).
      type: str
      returned: always
    address:
      description: Where it listens.
      type: str
      returned: when listed
    release:
      description: Directory of the release that it runs.
      type: str
      returned: when listed
    problems:
      description: What the gate found, and how the host differs from the list. With O(verify) only.
      type: list
      elements: str
      returned: with O(verify)
    exposure:
      description: Score of C(systemd-analyze security), from 0, safe, to 10.
      type: float
      returned: with O(verify)
    gate:
      description: What the gate saw when this configuration was started, with predicted and measured bytes.
      type: dict
      returned: when listed
firewall:
  description: Rules of firewalld that were C(opened) and C(closed), each with its zone.
  returned: success, except with O(verify)
  type: dict
release:
  description: Directory that O(release) points to.
  returned: success
  type: str
"""

import contextlib
import functools
import grp
import hashlib
import inspect
import json
import os
import pwd
import shutil
import socket
import ssl
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llamafleet.turboquant.plugins.module_utils import (
    _firewall,
    _model_file,
    _server_flags,
    _server_gate,
    _server_instance,
    _server_log,
    _server_metrics,
    _server_plan,
    _server_probe,
    _unit,
)

UNITS = Path("/etc/systemd/system")
CREDENTIALS = Path(_unit.CREDENTIALS)
STATE = Path("/var/lib/llamafleet/state")
# Gone with the next boot: a run that is refused on a bare host leaves no folder of ours there for its lock.
LOCKS = Path("/run/lock/llamafleet")
# Where figures were written, to find them again when they are not wanted any more. No instance has such a name.
TEXTFILE = STATE / ".textfile"
# The firewall's rules that were added here, and which may therefore be removed.
FIREWALL = STATE / ".firewall"
# A second server beside the first, for the time of its trial.
TRIAL = ".trial"
HALF_WRITTEN = ".new"
# What the host and each device keep besides a server on trial.
SPARE = 1 << 30
SECRET_FILES = ("api-keys", "tls.key")
# Seconds that a run waits for another one on the same host, which may be loading a large model.
LOCK_TIMEOUT = 900

DEFAULTS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 8080,
    "backend": "cpu",
    "parallel": 1,
    "kv_unified": None,
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "flash_attn": "auto",
    "devices": [],
    "cache_ram_mib": 0,
    "load_mode": "auto",
    "slots": False,
    "extra_args": [],
    "env": {},
    "tls": {},
    "allow_open": False,
    "allow_from": [],
    "memory_max": "auto",
    "oom_score_adjust": 500,
    "start_timeout": 300,
    "drain_timeout": 60,
    "jit": False,
    "max_graph_splits": 8,
    "min_tps": "0",
    "watchdog": {},
    "state": "started",
}
SETTINGS_SPEC: dict[str, Any] = {
    "mmproj": {"type": "str"},
    "alias": {"type": "str"},
    "host": {"type": "str"},
    "port": {"type": "int"},
    "backend": {"type": "str", "choices": ["cpu", "cuda", "rocm", "vulkan"]},
    "ctx_size": {"type": "raw"},
    "cache_type_k": {"type": "str"},
    "cache_type_v": {"type": "str"},
    "flash_attn": {"type": "str", "choices": ["on", "off", "auto"]},
    "parallel": {"type": "int"},
    "kv_unified": {"type": "bool"},
    "batch_size": {"type": "int"},
    "ubatch_size": {"type": "int"},
    "threads": {"type": "int"},
    "n_gpu_layers": {"type": "str"},
    "devices": {"type": "list", "elements": "str"},
    "load_mode": {"type": "str", "choices": ["auto", "mmap", "none", "mlock", "mmap+mlock", "dio"]},
    "cache_ram_mib": {"type": "int"},
    "slots": {"type": "bool"},
    "cors_origins": {"type": "list", "elements": "str"},
    "reasoning": {
        "type": "dict",
        "options": {
            "mode": {"type": "str", "choices": ["on", "off", "auto"]},
            "budget": {"type": "int"},
            "format": {"type": "str", "choices": ["none", "deepseek", "deepseek-legacy", "auto"]},
        },
    },
    "sampling": {
        "type": "dict",
        "options": {
            "temperature": {"type": "float"},
            "top_p": {"type": "float"},
            "top_k": {"type": "int"},
            "min_p": {"type": "float"},
        },
    },
    "draft": {
        "type": "dict",
        "options": {"model": {"type": "str", "required": True}, "max": {"type": "int"}, "min": {"type": "int"}},
    },
    "turbo_layer_adaptive": {"type": "int"},
    "cuda_unified_memory": {"type": "bool"},
    "vk_prefer_host_memory": {"type": "bool"},
    "env": {"type": "dict"},
    "extra_args": {"type": "list", "elements": "str"},
    "api_keys": {"type": "list", "elements": "str", "no_log": True},
    "tls": {
        "type": "dict",
        "options": {
            "certificate": {"type": "path"},
            "key": {"type": "path"},
            "certificate_content": {"type": "str"},
            "key_content": {"type": "str", "no_log": True},
        },
    },
    "allow_open": {"type": "bool"},
    "allow_from": {"type": "list", "elements": "str"},
    "firewall": {
        "type": "dict",
        "options": {"zone": {"type": "str"}, "sources": {"type": "list", "elements": "str"}},
    },
    "memory_max": {"type": "str"},
    "oom_score_adjust": {"type": "int"},
    "start_timeout": {"type": "int"},
    "drain_timeout": {"type": "int"},
    "jit": {"type": "bool"},
    "max_graph_splits": {"type": "int"},
    "min_tps": {"type": "str"},
    "watchdog": {
        "type": "dict",
        "options": {
            "enabled": {"type": "bool"},
            "interval": {"type": "int"},
            "timeout": {"type": "int"},
            "failures": {"type": "int"},
            "grace": {"type": "int"},
            "cooldown": {"type": "int"},
        },
    },
    "state": {"type": "str", "choices": ["started", "stopped", "absent"]},
}
INSTANCE_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "model": {"type": "str", "required": True},
    **SETTINGS_SPEC,
}

# What ends the module with a message, and no trace.
REFUSALS = (
    _firewall.FirewallError,
    _model_file.ModelFileError,
    _server_flags.FlagError,
    _server_instance.InstanceError,
)
WATCHDOG = {"enabled": True, "interval": 60, "timeout": 90, "failures": 3, "grace": 300, "cooldown": 1800}


class Failure(Exception):
    """The module fails with this message."""


class Unexpected(Failure):
    """An error of the module itself, whose trace is wanted; the host is as it was."""


class ServerFailure(Failure):
    """A server did not start or did not pass; its own last lines are read when the old one serves again."""

    def __init__(self, message: str, invocation: str) -> None:
        super().__init__(message)
        self.invocation = invocation
        # The journal is written beside the process: the last lines arrive a moment later.
        self.told = time.monotonic() + 0.3


class Module(AnsibleModule):
    """One that keeps its arguments from the journal, and does not end in the middle of a change.

    Ansible hides secrets there by their text; a private key has several lines, is spelled with backslashes there, and
    would be shown.
    """

    # Ansible's helpers (atomic_move, run_command) end the process with fail_json. While the host is changed, that is an
    # error like any other, which leads to the way back.
    working = False

    def fail_json(self, msg: str, **more: Any) -> Any:
        if self.working:
            raise Failure(msg)
        return super().fail_json(msg, **more)

    def log(self, msg: Any, log_args: Any = None) -> None:
        super().log("Invoked; the arguments hold keys and are not shown" if log_args else msg)


class Instance:
    """One instance: what is wanted, and how it stands on the host."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.item = item
        self.name: str = item["name"]
        self.unit = _unit.unit_name(self.name)
        self.files: dict[Path, bytes] = {}
        self.predicted: dict[str, Any] | None = item.get("predicted")
        self.fingerprint = ""
        self.action = "unchanged"
        self.reasons: list[str] = []
        self.gate: dict[str, Any] = {}
        self.options: _server_flags.Options | None = None
        self.listed: dict[str, dict[str, Any]] = {}
        # The names of the model files by the paths that the unit names.
        self.versions: dict[Path, str] = {}

    @property
    def credentials(self) -> Path:
        return CREDENTIALS / self.name

    @property
    def state_path(self) -> Path:
        return STATE / self.name / "state.json"

    @property
    def good_unit(self) -> Path:
        return STATE / self.name / "good.service"

    def state(self) -> dict[str, Any]:
        try:
            loaded = json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def reason_of(exc: BaseException) -> str:
    """What an error says, for a sentence."""
    if isinstance(exc, OSError):
        return f"{exc.filename or 'the host'}: {exc.strerror or exc}"
    return str(exc) if isinstance(exc, (Failure, *REFUSALS)) else f"{type(exc).__name__}: {exc}"


def mode_of(path: Path) -> int:
    return 0o400 if path.parent.parent == CREDENTIALS else 0o644


class Worker:
    """Brings the host to the list."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.check = module.check_mode
        self.release = Path(self.params["release"]).resolve()
        # Whose options and rules are taken: another's only where this one is not there yet, see find_release.
        self.known, self.foretold = self.release, False
        self.removed: list[str] = []
        # Instances that wait for a reboot, and why.
        self.held: dict[str, str] = {}
        self.diffs: list[dict[str, str]] = []
        self.firewall = _firewall.Firewall(self.run, FIREWALL)
        self.ports = _firewall.Plan()

    # -- small helpers

    def run(self, words: list[str]) -> tuple[int, str, str]:
        result: tuple[int, str, str] = self.module.run_command(words)
        return result

    def systemctl(self, *words: str) -> None:
        rc, out, err = self.run(["systemctl", *words])
        if rc != 0:
            raise Failure(f"systemctl {' '.join(words)} failed: {(err or out).strip()}")

    def write(self, path: Path, content: bytes) -> None:
        """Write whole or not at all, never readable by others for a moment when it may not be."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        # A secret is written beside its place, where the next run finds what a killed one has left.
        secret = path.parent.parent == CREDENTIALS
        try:
            descriptor, temporary = tempfile.mkstemp(
                dir=path.parent if secret else self.module.tmpdir, suffix=HALF_WRITTEN
            )
            try:
                with os.fdopen(descriptor, "wb") as handle:
                    handle.write(content)
                Path(temporary).chmod(mode_of(path))
                self.module.atomic_move(temporary, str(path))
            except BaseException:
                # On a full disk its blocks are what the way back needs.
                Path(temporary).unlink(missing_ok=True)
                raise
            path.chmod(mode_of(path))
        except Failure:
            raise
        except Exception as exc:
            # An OSError, or the plain Exception that atomic_move of a newer Ansible makes of one.
            cause = exc.__cause__ or exc
            raise Failure(f"{path} cannot be written: {getattr(cause, 'strerror', None) or cause}") from exc

    def forget_arguments(self) -> None:
        """Remove the files in which this module was sent: they hold the keys, and a killed run would leave its own.

        Ansible removes them itself after a run that ended. By now this process has read its own.
        """
        if getattr(self.module, "_keep_remote_files", False):
            return
        for path in Path(self.module.tmpdir).parent.glob("ansible-tmp-*/AnsiballZ_llama_instances.py"):
            with contextlib.suppress(OSError):
                path.unlink()

    # -- checking

    def find_release(self) -> None:
        """Before an upgrade, check mode shows what would be with the current release, which is near to what comes."""
        if (
            not self.check
            or (self.release / "bin" / "llama-server").is_file()
            or self.release.parent.name != "releases"
        ):
            return
        current = (self.release.parent.parent / "current").resolve()
        if (current / "bin" / "llama-server").is_file():
            self.known, self.foretold = current, True
            self.module.warn(
                f"{self.release} is not on the host yet: command lines and plans are shown as those of {current}, and "
                "may differ in what came or went between the two"
            )

    def options(self) -> _server_flags.Options | None:
        binary = self.known / "bin" / "llama-server"
        if not binary.is_file():
            if self.check:
                return None
            raise Failure(f"{binary} does not exist; install a release first (role llama_install)")
        rc, out, err = self.module.run_command([str(binary), "--help"], environ_update={"GGML_NO_BACKTRACE": "1"})
        if rc != 0:
            raise Failure(f"{binary} --help ended with {rc}: {_server_log.last_words(err or out, 3)}")
        return _server_flags.parse_help(out)

    def groups(self, backend: str) -> list[str]:
        if backend == "cpu":
            return []
        found = []
        for name in ("render", "video"):
            with contextlib.suppress(KeyError):
                found.append(grp.getgrnam(name).gr_name)
        return found

    def check_model(self, item: dict[str, Any], listed: dict[str, dict[str, Any]]) -> None:
        directory = Path(self.params["model_dir"])
        record = _model_file.Record(directory)
        for name in (item["model"], item.get("mmproj"), (item.get("draft") or {}).get("model")):
            if not name:
                continue
            path = directory / name
            where = f"instance {item['name']!r}: model file {path}"
            if not path.is_file():
                if self.check:
                    continue
                raise Failure(f"{where} does not exist; place it first (role llama_model)")
            known = listed.get(name, {})
            size = path.stat().st_size
            if known.get("bytes") and int(known["bytes"]) != size:
                raise Failure(
                    f"{where} has {size} bytes, not the {known['bytes']} of llama_model_files; it is cut short"
                )
            with path.open("rb") as handle:
                magic = handle.read(4)
            if magic != b"GGUF":
                raise Failure(
                    f"{where} begins with {magic!r} and not with b'GGUF'; it is not a model llama-server can load"
                )
            digest = record.digest(path)
            if known.get("sha256") and digest is not None and digest != known["sha256"].lower():
                if self.check:
                    continue
                raise Failure(
                    f"{where} has sha256 {digest}, but llama_model_files says {known['sha256']}; run llama_model"
                )
            if known.get("sha256") and digest is None and not self.check:
                raise Failure(
                    f"{where} has changed since its sha256 was checked; run role llama_model, which reads it again"
                )

    def check_tls(self, item: dict[str, Any]) -> None:
        """Refuse a certificate and a key that do not belong together."""
        if not item["has_tls"]:
            return
        tls = item["tls"]
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as folder:
            paths = {}
            for kind in ("certificate", "key"):
                if f"{kind}_content" in tls:
                    paths[kind] = Path(folder) / kind
                    descriptor = os.open(paths[kind], os.O_WRONLY | os.O_CREAT, 0o400)
                    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                        handle.write(tls[f"{kind}_content"])
                else:
                    paths[kind] = Path(tls[kind])
                    if not paths[kind].is_file():
                        raise Failure(f"instance {item['name']!r}: tls.{kind} {paths[kind]} does not exist")
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(paths["certificate"], paths["key"])
            except (ssl.SSLError, OSError, ValueError) as exc:
                raise Failure(
                    f"instance {item['name']!r}: the certificate and the key of tls do not make a pair: {exc}"
                ) from exc

    def check_port(self, item: dict[str, Any], ours: dict[int, str]) -> None:
        """Refuse an address that a process which is not ours holds."""
        if item["state"] != "started" or item["host"].endswith(".sock"):
            return
        try:
            candidates = socket.getaddrinfo(
                item["host"], item["port"], type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as exc:
            raise Failure(f"instance {item['name']!r}: host {item['host']!r} cannot be resolved: {exc}") from exc
        family, kind, _protocol, _name, address = candidates[0]
        with contextlib.closing(socket.socket(family, kind)) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(address)
                return
            except OSError as exc:
                reason = exc.strerror
        holder = listener(item["port"])
        if holder is not None and holder[0] in ours:
            return
        who = f"process {holder[0]} ({holder[1]})" if holder else reason
        raise Failure(
            f"instance {item['name']!r}: {_server_instance.endpoint(item)} is taken by {who}; "
            "stop that or choose another port"
        )

    def warn_of_origins(self, item: dict[str, Any], options: _server_flags.Options | None) -> None:
        """Name what a build cannot limit: without a key, the page of a stranger asks through a visitor's browser."""
        socket_only = item["host"].endswith(".sock")
        if options is None or options.has("--cors-origins") or item["has_keys"] or socket_only:
            return
        if item["state"] == "started":
            where = _server_instance.endpoint(item)
            self.module.warn(
                f"instance {item['name']!r} has no API key, and the installed llama-server has no --cors-origins: "
                f"every web page that is open in a browser which reaches {where} can send requests and read the "
                "answers; list api_keys, which such a page does not know"
            )

    # -- looking

    def managed(self) -> dict[str, Path]:
        found = {}
        for path in sorted(UNITS.glob("llama-server@*.service")):
            name = path.name[len("llama-server@") : -len(".service")]
            content = read(path)
            if name and content is not None and content.decode("utf-8", "replace").startswith(_unit.MARK):
                found[name] = path
        return found

    def prepare(self) -> list[Instance]:
        params = self.params
        listed = {str(entry["name"]): entry for entry in params["models"]}
        defaults = {**DEFAULTS, **{key: value for key, value in params["defaults"].items() if value is not None}}
        items = _server_instance.complete_all(params["instances"], defaults)
        wanted = any(item["state"] != "absent" for item in items)
        if wanted:
            self.find_release()
        options = self.options() if wanted else None
        try:
            pwd.getpwnam(params["user"])
        except KeyError:
            if wanted and not self.check:
                raise Failure(f"the user {params['user']!r} does not exist on this host") from None
        textfiles = params["textfile_directory"]
        if wanted and textfiles and not self.check and not Path(textfiles).is_dir():
            raise Failure(
                f"textfile_directory {textfiles} is not a directory; make it the one of node_exporter's "
                "--collector.textfile.directory"
            )
        managed = self.managed()
        result = []
        pids = {}
        for name in managed:
            pid = _server_gate.show(self.run, _unit.unit_name(name)).get("MainPID", "0")
            if pid.isdigit() and pid != "0":
                pids[int(pid)] = name
        for item in items:
            item["loopback"] = _server_instance.loopback(item["host"])
            given = {key: value for key, value in (item["watchdog"] or {}).items() if value is not None}
            item["watchdog"] = {**WATCHDOG, **given}
            item["textfile_directory"] = params["textfile_directory"]
            _server_instance.model_paths(item, params["model_dir"], listed)
            if item["state"] == "absent":
                continue
            path = UNITS / _unit.unit_name(item["name"])
            if path.exists() and item["name"] not in managed:
                raise Failure(f"{path} exists and was not made by this collection; move it away or rename the instance")
            self.check_model(item, listed)
            self.check_tls(item)
            self.check_port(item, pids)
            self.warn_of_origins(item, options)
            result.append(item)
        self.plan(result)
        asking = {item["name"]: item["firewall"] for item in result if item["firewall"] and item["state"] == "started"}
        waiting = {name: asking.pop(name) for name in self.held if name in asking}
        self.ports = self.firewall.plan(asking, waiting)
        return [self.render(item, options, listed) for item in result if item["name"] not in self.held]

    def plan(self, items: list[dict[str, Any]]) -> None:
        """Predict the instances' memory and choose what is left to the plan."""
        for item in items:
            item["predicted"] = None
        build = self.params["build"]
        if build == "auto":
            build = _server_plan.build_of(self.known)
        if not self.params["plan"] or build is None:
            for item in items:
                self.refuse_auto(item, "the installed build is none that the planner knows; set llama_server_build")
                if self.params["plan"] and Path(item["model_path"]).is_file():
                    self.refuse_endless(item)
            return
        used = {}
        for item in items:
            state = Instance(item).state()
            item["chosen"] = state.get("chosen") or {}
            predicted = (state.get("gate") or {}).get("predicted") or {}
            shown = _server_gate.show(self.run, _unit.unit_name(item["name"])) if not self.bare() else {}
            if shown.get("ActiveState") == "active":
                used[item["name"]] = predicted.get("devices") or {}
        ram = self.params["plan_ram_bytes"]
        # The plan keeps a part of all the memory for the system.
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if ram is None else ram * 10 // 9
        if ram is None:
            ram = whole * 9 // 10
        planner = _server_plan.Planner(build, self.params["plan_devices"], used, self.params["gtt_pending_bytes"])

        def automatic(item: dict[str, Any]) -> bool:
            return "auto" in (item["ctx_size"], item["cache_type_k"], item["cache_type_v"])

        # In check mode the release may be still to come: it is built with the kernels that the instances name.
        kernels = _server_plan.has_all_quants(self.release) or (self.check and not self.release.is_dir())
        for item in items:
            item["fa_all_quants"] = kernels
        ready = []
        # What is fixed goes first, so that auto takes what remains and not what another one needs.
        for item in sorted(items, key=automatic):
            if item["state"] != "started":
                self.refuse_auto(item, "its state is stopped, and what is free now may not be when it starts")
                if item["memory_max"] == "auto":
                    item["memory_max"] = chosen_before(item).get("memory_max", "auto")
                continue
            if not Path(item["model_path"]).is_file():
                # In check mode before the model is there. What is chosen shows when it is.
                continue
            item["choice_key"] = choice_key(item, self.release, build, self.params)
            devices = _server_plan.host_devices(item, self.params["plan_devices"], self.params["gtt_pending_bytes"])
            item["devices_bytes"] = {device["name"]: device["total_bytes"] for device in devices or []}
            if answered(item):
                # Also of a limit that a prediction gave: another split over the devices, by what is free at the moment,
                # would otherwise be another limit, and a restart.
                kept = chosen_before(item)
                if automatic(item):
                    item.update({key: value for key, value in kept.items() if key != "memory_max"})
                if item["memory_max"] == "auto":
                    item["memory_max"] = kept.get("memory_max", "auto")
            ready.append(item)
        try:
            if any(automatic(item) for item in ready):
                planner.choose(ready, whole)
        except _server_plan.PlanError as exc:
            raise Failure(str(exc)) from exc
        for item in ready:
            try:
                item["predicted"] = planner.plan(item, ram)
            except _server_plan.PlanError as exc:
                raise Failure(str(exc)) from exc
            why = planner.waits(item, item["predicted"]) if item["predicted"] is not None else ""
            if why:
                self.held[item["name"]] = why
                self.module.warn(why)

    def refuse_endless(self, item: dict[str, Any]) -> None:
        try:
            _server_plan.refuse_endless(item["model_path"])
        except _server_plan.PlanError as exc:
            raise Failure(str(exc)) from exc

    def refuse_auto(self, item: dict[str, Any], why: str) -> None:
        for key in ("ctx_size", "cache_type_k", "cache_type_v"):
            if item[key] == "auto" and not self.check:
                raise Failure(f"instance {item['name']!r}: {key} cannot be auto: {why}, or give a value")

    def render(
        self, item: dict[str, Any], options: _server_flags.Options | None, listed: dict[str, dict[str, Any]]
    ) -> Instance:
        """Make the instance's files."""
        instance = Instance(item)
        tls = item["tls"]
        for kind, name in (("certificate", "tls.crt"), ("key", "tls.key")):
            path = str(instance.credentials / name) if f"{kind}_content" in tls else tls.get(kind, "")
            item[f"tls_{kind}_path"] = path
            if f"{kind}_content" in tls:
                instance.files[instance.credentials / name] = tls[f"{kind}_content"].encode("utf-8")
        if item["has_keys"]:
            instance.files[instance.credentials / "api-keys"] = ("\n".join(item["api_keys"]) + "\n").encode("utf-8")
        try:
            if options is None:
                flags = ["(rendered for the binary when it is installed)"]
            else:
                item["environment"] = _server_flags.check_environment(options, item["environment"])
                flags = _server_flags.command_line(options, self.versioned(instance, listed))
        except _server_flags.FlagError as exc:
            if not self.foretold:
                raise Failure(f"instance {item['name']!r}: {exc}") from exc
            # The release that comes may well know it.
            flags = [f"(the current release refuses: {exc})"]
        text = _unit.render_service(item, str(self.release), flags, self.params["user"], self.groups(item["backend"]))
        instance.files[UNITS / instance.unit] = text.encode("utf-8")
        instance.files.update(
            {UNITS / name: content.encode("utf-8") for name, content in _unit.render_watchdog(item).items()}
        )
        # All that decides what the process is: with the same fingerprint it need not be started again.
        digest = hashlib.sha256(text.encode("utf-8"))
        for path in sorted(instance.files):
            if path.parent == instance.credentials:
                digest.update(path.name.encode() + b"\0" + instance.files[path])
        for kind in ("certificate", "key"):
            if kind in tls:
                digest.update(Path(tls[kind]).read_bytes())
        for model in (item["model"], item.get("mmproj"), (item.get("draft") or {}).get("model")):
            digest.update(str(listed.get(model or "", {}).get("sha256", "")).encode())
        instance.fingerprint = digest.hexdigest()
        instance.options, instance.listed = options, listed
        return instance

    def versioned(self, instance: Instance, listed: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The instance with the paths of its files by their digests.

        A file that is fetched anew under the same name is then another path: a restart loads what has passed the gate,
        and the way back leads to the old bytes.
        """
        item = dict(instance.item)
        directory = Path(self.params["model_dir"])

        def path_of(name: str) -> str:
            path = _model_file.version_path(directory, name, str(listed.get(name, {}).get("sha256") or ""))
            instance.versions[path] = name
            return str(path)

        item["model_path"] = path_of(item["model"])
        if item.get("mmproj_path"):
            item["mmproj_path"] = path_of(item["mmproj"])
        if (item.get("draft") or {}).get("model_path"):
            item["draft"] = {**item["draft"], "model_path": path_of(item["draft"]["model"])}
        return item

    def keep_versions(self, instances: list[Instance]) -> bool:
        """Give the instances' files their names by digest; say whether one was missing."""
        directory = Path(self.params["model_dir"])
        changed = False
        for instance in instances:
            for path, name in instance.versions.items():
                if self.check:
                    changed = changed or not path.exists()
                else:
                    changed = _model_file.keep_version(directory, name, path) or changed
        return changed

    def forget_versions(self) -> None:
        """Remove the files that no unit names any more, neither one in place nor one that passed the gate."""
        directory = Path(self.params["model_dir"])
        units = [*self.managed().values(), *STATE.glob("*/good.service")]
        texts = [(read(path) or b"").decode("utf-8", "replace") for path in units]
        found = (directory / _model_file.VERSIONS).glob("*/*")
        needed = {path for path in found if any(str(path) in text for text in texts)}
        _model_file.forget_versions(directory, needed)

    def compare(self, instance: Instance) -> None:
        """Find out what has to be done, and note it for the diff."""
        before: dict[Path, bytes | None] = {}
        after: dict[Path, bytes | None] = {}
        for path, content in sorted(instance.files.items()):
            old = read(path)
            if old != content or (path.stat().st_mode & 0o777) != mode_of(path):
                before[path], after[path] = old, content
        gone = self.superfluous(instance)
        for path in gone:
            before[path], after[path] = read(path), None
        for path, old in before.items():
            self.diffs.append(difference(path, old, after[path]))
        shown = _server_gate.show(self.run, instance.unit) if not self.bare() else {}
        active = shown.get("ActiveState") in ("active", "reloading", "activating")
        wanted = instance.item["state"] == "started"
        new = read(UNITS / instance.unit) is None
        service = any(not path.name.startswith("llama-watchdog@") for path in before)
        if service:
            instance.reasons.append("settings")
        if wanted and instance.state().get("fingerprint") != instance.fingerprint:
            instance.reasons.append("never passed the gate as it is")
        if wanted != active:
            instance.reasons.append("not running" if wanted else "running")
        if (shown.get("UnitFileState") == "enabled") != wanted and not new:
            instance.reasons.append("not enabled" if wanted else "enabled")
        instance.gate = instance.state().get("gate", {}) if not instance.reasons else {}
        if instance.reasons:
            instance.action = "created" if new else "updated" if service else "restarted" if wanted else "stopped"
            if not service:
                text = f"{instance.unit}: {', '.join(instance.reasons)}\n"
                after_text = f"{instance.unit}: {'running' if wanted else 'stopped'}\n"
                self.diffs.append({"before": text, "after": after_text, "before_header": "", "after_header": ""})
        elif before:
            instance.action = "updated"

    def bare(self) -> bool:
        return not Path("/run/systemd/system").is_dir()

    def superfluous(self, instance: Instance) -> list[Path]:
        """Files of an earlier form of this instance: keys no longer listed, a watchdog no longer wanted."""
        candidates = [instance.credentials / name for name in ("api-keys", "tls.crt", "tls.key")]
        candidates += [UNITS / _unit.watchdog_name(instance.name, kind) for kind in ("service", "timer")]
        return [path for path in candidates if path not in instance.files and path.exists()]

    # -- doing

    def install_probe(self) -> bool:
        path = Path(_unit.PROBE)
        content = inspect.getsource(_server_probe).encode("utf-8")
        if read(path) == content:
            return False
        # What it says matters to nobody who reads a diff; that it changes does.
        self.diffs.append({"before": "", "after": f"{path}\n", "before_header": "", "after_header": str(path)})
        if not self.check:
            self.write(path, content)
        return True

    def textfiles(self, instances: list[Instance]) -> bool:
        """Keep the figures for Prometheus; say whether something changes."""
        known = read(TEXTFILE)
        before = None if known is None else Path(known.decode("utf-8").strip())
        wanted = Path(self.params["textfile_directory"]) if self.params["textfile_directory"] and instances else None
        files: dict[Path, bytes | None] = {}
        if before is not None:
            keep = {
                instance.name for instance in instances if wanted == before and instance.item["watchdog"]["enabled"]
            }
            for path in before.glob("llamafleet_watchdog_*.prom"):
                if path.name[len("llamafleet_watchdog_") : -len(".prom")] not in keep:
                    files[path] = None
            if wanted != before:
                files[before / _server_metrics.FILE] = None
        if wanted is not None:
            rows = {
                instance.name: {
                    "release": instance.state().get("release", str(self.release)),
                    "model": instance.item["model"],
                    "address": _server_instance.endpoint(instance.item),
                    "state": instance.state(),
                }
                for instance in instances
                if instance.item["state"] == "started"
            }
            files[wanted / _server_metrics.FILE] = _server_metrics.textfile(rows).encode("utf-8")
        changed = {path: content for path, content in files.items() if read(path) != content}
        for path, content in changed.items():
            self.diffs.append(difference(path, read(path), content))
        if not self.check:
            self.put(changed)
            if wanted is None:
                TEXTFILE.unlink(missing_ok=True)
            elif wanted != before:
                self.write(TEXTFILE, f"{wanted}\n".encode())
        return bool(changed)

    def keep_ports(self) -> bool:
        """Open and close ports, last of all: only what has passed is let in. Say whether something changes."""
        plan = self.ports
        if plan.add or plan.remove:
            self.diffs.append(plan.difference())
        if not self.check:
            self.firewall.apply(plan, lambda path, text: self.put({path: None if text is None else text.encode()}))
        return bool(plan.add or plan.remove)

    def remove(self, name: str) -> None:
        self.removed.append(name)
        unit = _unit.unit_name(name)
        for path in (UNITS / unit, *(UNITS / _unit.watchdog_name(name, kind) for kind in ("service", "timer"))):
            if path.exists():
                self.diffs.append(difference(path, read(path), None))
        if self.check:
            return
        timer = _unit.watchdog_name(name, "timer")
        if (UNITS / timer).exists():
            self.systemctl("disable", "--now", timer)
        self.systemctl("disable", "--now", unit)
        for folder in (CREDENTIALS / name, STATE / name):
            shutil.rmtree(folder, ignore_errors=True)
        # The unit goes last: it is what leads the next run to the rest when this one is killed.
        for path in (
            _server_probe.WATCH_STATE / f"{name}.json",
            *(UNITS / _unit.watchdog_name(name, kind) for kind in ("service", "timer")),
            UNITS / unit,
        ):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        self.systemctl("daemon-reload")
        self.run(["systemctl", "reset-failed", unit])

    def forget_leftovers(self, keep: set[str]) -> None:
        """Remove secrets that a killed run has left and no unit leads to: those of a trial, and half-written ones."""
        for path in CREDENTIALS.glob("*/*"):
            foreign = path.parent.name not in keep and path.name in (*SECRET_FILES, "tls.crt")
            if foreign or path.name.endswith(HALF_WRITTEN):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        for folder in CREDENTIALS.glob("*"):
            if folder.name not in keep:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def snapshot(self, instance: Instance) -> dict[str, Any]:
        """What has to be put back when the change fails."""
        paths = set(instance.files) | set(self.superfluous(instance))
        files = {path: read(path) for path in paths}
        unit = UNITS / instance.unit
        good = read(instance.good_unit)
        state = instance.state()
        current = files.get(unit)
        if good is not None and current is not None and hashlib.sha256(current).hexdigest() != state.get("unit_sha256"):
            # A killed run left a unit that never passed; the way back is the one that did.
            files[unit] = good
        # The record goes back with what it records.
        files.update({path: read(path) for path in (instance.good_unit, instance.state_path)})
        shown = _server_gate.show(self.run, instance.unit)
        enabled = shown.get("UnitFileState") == "enabled"
        return {"files": files, "was_started": enabled or shown.get("ActiveState") == "active", "enabled": enabled}

    def put(self, files: dict[Path, bytes | None]) -> None:
        for path, content in files.items():
            if content is None:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
            elif read(path) != content or (path.stat().st_mode & 0o777) != mode_of(path):
                # What is right already is not touched: on a full disk the way back has only what it must write.
                if path.parent.parent == CREDENTIALS:
                    path.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
                    path.parent.mkdir(exist_ok=True, mode=0o700)
                self.write(path, content)

    def place(self, instance: Instance) -> None:
        """Write the files of an instance, and remove those of an earlier form of it."""
        gone = self.superfluous(instance)
        for path in gone:
            if path.name.endswith(".timer"):
                self.systemctl("disable", "--now", path.name)
        self.put({**instance.files, **dict.fromkeys(gone)})
        self.systemctl("daemon-reload")

    def stop_watchdog(self, name: str) -> None:
        timer = _unit.watchdog_name(name, "timer")
        if (UNITS / timer).exists():
            self.run(["systemctl", "stop", timer])

    def start_watchdog(self, name: str) -> None:
        timer = _unit.watchdog_name(name, "timer")
        if (UNITS / timer).exists():
            self.systemctl("enable", timer)
            self.systemctl("restart", timer)

    def switch(self, instance: Instance) -> None:
        """Write, start and gate one instance. Raises Failure with the server's last lines."""
        self.stop_watchdog(instance.name)
        self.place(instance)
        if instance.item["state"] == "stopped":
            self.systemctl("disable", "--now", instance.unit)
            return
        self.systemctl("enable", instance.unit)
        self.start_and_gate(instance)

    def start_and_gate(self, instance: Instance) -> None:
        self.run(["systemctl", "reset-failed", instance.unit])
        rc, out, err = self.run(["systemctl", "restart", instance.unit])
        if rc != 0:
            raise self.failed(instance.unit, f"did not start: {(err or out).strip()}")
        if self.params["gate"]:
            key = instance.item["api_keys"][0] if instance.item["api_keys"] else None
            seen = _server_gate.examine(
                self.run,
                instance.item,
                key,
                instance.predicted,
                timeout=self.params["gate_timeout"],
                tolerance=self.params["tolerance"],
                rate_before=rate_before(instance.state(), speed_key(instance), str(self.release)),
            )
            if seen["problems"]:
                raise self.failed(instance.unit, f"did not pass the gate: {'; '.join(seen['problems'])}")
            instance.gate = {**seen, "predicted": instance.predicted}

    def room_for_two(self, instance: Instance) -> bool:
        """Say whether the plan allows a second server of this kind beside what runs now."""
        predicted = instance.predicted
        if predicted is None:
            return False
        host = predicted["devices"].get("host", 0)
        available = 0
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
        if host + SPARE > available:
            return False
        listed = _server_plan.host_devices(instance.item, self.params["plan_devices"])
        free = {device["name"]: device["free_bytes"] for device in listed or []}
        others = {name: size for name, size in predicted["devices"].items() if name != "host"}
        # Figures of the inventory say nothing of what is free at this moment.
        return not others or (
            self.params["plan_devices"] is None
            and all(size + SPARE <= free.get(name, 0) for name, size in others.items())
        )

    def trial(self, instance: Instance) -> None:
        """Start the instance beside the running one and put it through the gate; Failure when it does not pass."""
        with contextlib.closing(socket.socket()) as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        item = {
            **instance.item,
            "name": instance.name + TRIAL,
            "host": "127.0.0.1",
            "loopback": True,
            "port": port,
            "drain_timeout": 0,
            "watchdog": {"enabled": False},
        }
        second = self.render(item, instance.options, instance.listed)
        # The text of the unit is made for another name; in it nothing restarts what failed.
        unit = UNITS / second.unit
        second.files[unit] = second.files[unit].replace(b"Restart=on-failure", b"Restart=no")
        try:
            self.put(dict(second.files))
            self.systemctl("daemon-reload")
            self.start_and_gate(second)
        except Failure as exc:
            words = self.words_of(exc)
            raise Failure(f"on trial beside the running instance, which was not touched: {words}") from exc
        finally:
            self.run(["systemctl", "stop", second.unit])
            unit.unlink(missing_ok=True)
            shutil.rmtree(second.credentials, ignore_errors=True)
            self.run(["systemctl", "daemon-reload"])
            self.run(["systemctl", "reset-failed", second.unit])

    def failed(self, unit: str, what: str) -> ServerFailure:
        return ServerFailure(f"{unit} {what}", _server_gate.show(self.run, unit).get("InvocationID", ""))

    def words_of(self, failure: Failure) -> str:
        """The failure's message, with the last lines of the server where one failed."""
        if not isinstance(failure, ServerFailure):
            return str(failure)
        time.sleep(max(0.0, failure.told - time.monotonic()))
        words: str = _server_log.last_words(_server_gate.journal_of(self.run, failure.invocation))
        return f"{failure}\nThe server's last lines:\n{words}"

    def record(self, instance: Instance) -> None:
        folder = STATE / instance.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        unit = instance.files[UNITS / instance.unit]
        _model_file.write_atomically(instance.good_unit, unit.decode("utf-8"))
        chosen = {
            "key": instance.item.get("choice_key"),
            "devices_bytes": instance.item.get("devices_bytes") or {},
            "settings": {key: instance.item[key] for key in CHOSEN},
        }
        state = {
            "chosen": chosen,
            "fingerprint": instance.fingerprint,
            "unit_sha256": hashlib.sha256(unit).hexdigest(),
            "release": str(self.release),
            "speed_key": speed_key(instance),
            "gated_at": int(time.time()),
            "gate": instance.gate,
        }
        _model_file.write_atomically(instance.state_path, json.dumps(state, indent=1, sort_keys=True) + "\n")

    def attempt(self, action: Callable[[], object], wrong: list[str]) -> bool:
        """Take one step of the way back; what goes wrong keeps nothing else from it, and is noted."""
        try:
            action()
        except BaseException as exc:  # also the exit of one of Ansible's helpers
            wrong.append(reason_of(exc))
            return False
        return True

    def revert(self, instance: Instance, before: dict[str, Any]) -> str:
        """Put one instance back; say in one line how that went."""
        unit = UNITS / instance.unit
        wrong: list[str] = []
        self.attempt(lambda: self.run(["systemctl", "stop", instance.unit]), wrong)
        if not before["was_started"]:
            self.attempt(lambda: self.run(["systemctl", "disable", instance.unit]), wrong)
        for path, content in before["files"].items():
            self.attempt(functools.partial(self.put, {path: content}), wrong)
        self.attempt(lambda: self.systemctl("daemon-reload"), wrong)
        self.attempt(lambda: self.run(["systemctl", "reset-failed", instance.unit]), wrong)
        if before["files"].get(unit) is None:
            how = f"{instance.unit} did not exist before and is removed again"
        elif not before["was_started"]:
            how = f"{instance.unit} is stopped, as it was"
        else:
            # Something that serves is better than nothing, even where not all of it could be put back.
            how = f"{instance.unit} runs again with its previous settings and release"
            if not self.attempt(lambda: self.systemctl("restart", instance.unit), wrong):
                how = f"{instance.unit} could not be started with its previous settings either"
            # After the start: each of them reads all units again, and clients would wait for that too.
            enable = "enable" if before["enabled"] else "disable"
            self.attempt(lambda: self.run(["systemctl", enable, instance.unit]), wrong)
            self.attempt(lambda: self.start_watchdog(instance.name), wrong)
        return f"{how} ({'; '.join(wrong)})" if wrong else how

    def revert_watchdog(self, instance: Instance, before: dict[str, Any]) -> str:
        """Put back the files of an instance whose server was not touched."""
        wrong: list[str] = []
        for path, content in before["files"].items():
            self.attempt(functools.partial(self.put, {path: content}), wrong)
        self.attempt(lambda: self.systemctl("daemon-reload"), wrong)
        self.attempt(lambda: self.start_watchdog(instance.name), wrong)
        return f"{instance.unit} was not touched, its watchdog is the one it had" + (
            f" ({'; '.join(wrong)})" if wrong else ""
        )

    def resume(self, name: str) -> str:
        """Start again what was stopped for the sake of another instance, and is as it was; nothing where it runs."""
        unit = _unit.unit_name(name)
        wrong: list[str] = []
        self.attempt(lambda: self.systemctl("start", unit), wrong)
        self.attempt(lambda: self.start_watchdog(name), wrong)
        return f"{unit} could not be started again ({'; '.join(wrong)})" if wrong else ""

    def free_ports(self, instances: list[Instance]) -> None:
        """Stop what holds an address that another instance takes over in this run."""
        for instance in instances:
            old = read(UNITS / instance.unit)
            if old is None:
                continue
            for other in instances:
                if other is instance or other.item["host"].endswith(".sock"):
                    continue
                held = f"--port {other.item['port']} ".encode()
                if held in old.replace(b" \\\n", b" \n") and instance.item["port"] != other.item["port"]:
                    self.stop_watchdog(instance.name)
                    self.systemctl("stop", instance.unit)

    def stop(self, name: str) -> None:
        """Stop an instance that is no longer listed."""
        self.stop_watchdog(name)
        self.systemctl("stop", _unit.unit_name(name))

    def try_out(self, instance: Instance) -> None:
        """Put the new form of a running instance on trial where there is room."""
        if instance.item["state"] != "started" or self.params["trial"] != "auto":
            return
        running = _server_gate.show(self.run, instance.unit).get("ActiveState") == "active"
        if running and self.room_for_two(instance):
            self.trial(instance)

    def apply(self, instances: list[Instance], leaving: list[str]) -> None:
        todo = [instance for instance in instances if instance.reasons]
        only_watchdog = [i for i in instances if not i.reasons and i.action != "unchanged"]
        before = {instance.name: self.snapshot(instance) for instance in (*todo, *only_watchdog)}
        done: list[Instance] = []
        stopped: list[str] = []
        try:
            self.free_ports(todo)
            # Their memory and their addresses may be wanted, but until all has passed they are a part of the way back.
            for name in leaving:
                if _server_gate.show(self.run, _unit.unit_name(name)).get("ActiveState") == "active":
                    stopped.append(name)
                self.stop(name)
            for instance in todo:
                self.try_out(instance)
                done.append(instance)
                self.switch(instance)
            for instance in todo:
                if instance.item["state"] == "started":
                    self.record(instance)
                    self.start_watchdog(instance.name)
            for instance in only_watchdog:
                done.append(instance)
                self.switch_watchdog(instance)
        except BaseException as exc:
            # Whatever it was, a gate, a full disk or an error of ours: nothing stays half changed or stopped.
            words = [
                self.revert(changed, before[changed.name])
                if changed.reasons
                else self.revert_watchdog(changed, before[changed.name])
                for changed in reversed(done)
            ]
            waiting = [other.name for other in todo if other not in done and before[other.name]["was_started"]]
            words += [said for said in map(self.resume, (*waiting, *stopped)) if said]
            back = f"The way back: {'; '.join(words)}." if words else ""
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                # It has said why already, or nobody listens.
                if back:
                    self.module.warn(back)
                raise
            why = self.words_of(exc) if isinstance(exc, Failure) else reason_of(exc)
            kind = Failure if isinstance(exc, (Failure, OSError, *REFUSALS)) else Unexpected
            raise kind("\n".join(filter(None, (why, back)))) from exc

    def switch_watchdog(self, instance: Instance) -> None:
        """Change what is beside an instance whose server stays as it is."""
        self.place(instance)
        self.start_watchdog(instance.name)

    def row(self, instance: Instance) -> dict[str, Any]:
        return {
            "name": instance.name,
            "action": instance.action,
            "reasons": instance.reasons,
            "address": _server_instance.endpoint(instance.item),
            "model": instance.item["model"],
            "ctx_size": instance.item["ctx_size"],
            "cache_types": f"{instance.item['cache_type_k']}/{instance.item['cache_type_v']}",
            "state": instance.item["state"],
            "release": str(self.release),
            "gate": {key: value for key, value in instance.gate.items() if key != "measured"},
        }

    def inspect(self, instances: list[Instance]) -> dict[str, Any]:
        """Put what runs through the gate, and say how the host differs from the list."""
        rows = []
        for instance in instances:
            state = instance.state()
            problems = [f"differs from the inventory: {reason}" for reason in instance.reasons]
            row: dict[str, Any] = {**self.row(instance), "exposure": _server_gate.exposure(self.run, instance.unit)}
            if instance.item["state"] == "started":
                same = state.get("fingerprint") == instance.fingerprint
                seen = _server_gate.examine(
                    self.run,
                    instance.item,
                    instance.item["api_keys"][0] if instance.item["api_keys"] else None,
                    instance.predicted if same else None,
                    state.get("gate", {}).get("measured") if same else None,
                    timeout=self.params["gate_timeout"],
                    tolerance=self.params["tolerance"],
                )
                problems += seen["problems"]
                row["gate"] = {key: value for key, value in seen.items() if key != "measured"}
            for zone, rule in self.ports.lacking.get(instance.name, []):
                problems.append(f"differs from the inventory: zone {zone} of the firewall lacks {rule}")
            rows.append({**row, "problems": problems})
        foreign = sorted(set(self.managed()) - {instance.name for instance in instances} - set(self.held))
        rows += [{"name": name, "action": "unchanged", "problems": ["is not in the inventory"]} for name in foreign]
        stale = [f"differs from the inventory: the firewall still has {rule}" for rule in self.ports.closed]
        rows += [{"name": "firewall", "action": "unchanged", "problems": stale}] if stale else []
        return {"changed": False, "instances": rows, "release": str(self.release)}

    def work(self) -> dict[str, Any]:
        self.forget_arguments()
        if self.check or self.params["verify"]:
            return self.bring()
        # A run whose controller has gone works on by itself; the next one begins where that ends.
        LOCKS.mkdir(exist_ok=True, mode=0o755)
        with _model_file.locked(LOCKS, LOCK_TIMEOUT):
            return self.bring()

    def bring(self) -> dict[str, Any]:
        instances = self.prepare()
        if self.params["verify"]:
            for instance in instances:
                self.compare(instance)
            return self.inspect(instances)
        managed = self.managed()
        keep = {instance.name for instance in instances} | set(self.held)
        for instance in instances:
            self.compare(instance)
        changed = bool(instances) and self.install_probe()
        leaving = sorted(set(managed) - keep)
        changed = self.keep_versions(instances) or changed
        if not self.check:
            if instances:
                STATE.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.apply(instances, leaving)
        for name in leaving:
            self.remove(name)
        if not self.check:
            self.forget_leftovers(keep)
            self.forget_versions()
        changed = self.textfiles(instances) or changed
        changed = self.keep_ports() or changed
        changed = changed or bool(self.removed) or any(item.action != "unchanged" for item in instances)
        result = [self.row(instance) for instance in instances]
        result += [
            {"name": name, "action": "unchanged", "state": "held back", "reasons": [why]}
            for name, why in sorted(self.held.items())
        ]
        result += [{"name": name, "action": "removed"} for name in self.removed]
        return {
            "changed": changed,
            "instances": result,
            "firewall": {"opened": self.ports.opened, "closed": self.ports.closed},
            "diff": self.diffs,
            "release": str(self.release),
        }


def choice_key(item: dict[str, Any], release: Path, build: str, params: dict[str, Any]) -> str:
    """All that a choice of the plan depends on, except what happens to be free at the moment."""
    left_out = ("api_keys", "tls", "firewall", "chosen", "predicted", "devices_bytes", "min_tps", "min_tps_percent")
    settings = {key: value for key, value in item.items() if key not in left_out}
    path = Path(item["model_path"])
    words = [settings, str(release), build, params["plan_devices"], params["plan_ram_bytes"], path.stat().st_size]
    return hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode("utf-8")).hexdigest()


# What the plan may choose, and what was chosen with it.
CHOSEN = ("ctx_size", "cache_type_k", "cache_type_v", "flash_attn", "memory_max")


def chosen_before(item: dict[str, Any]) -> dict[str, Any]:
    """The settings with which the instance last passed."""
    settings: dict[str, Any] = item["chosen"].get("settings") or {}
    return settings


def answered(item: dict[str, Any]) -> bool:
    """Say whether the same question was put to the plan before: what is free at this moment changes no running server.

    A device whose memory has another size is another question: an APU after its limit was raised. A kernel keeps a few
    MiB more or less than the one before, which is none.
    """
    before, now = item["chosen"].get("devices_bytes") or {}, item["devices_bytes"]
    same_memory = before.keys() == now.keys() and all(abs(now[name] - before[name]) <= 256 << 20 for name in now)
    return item["chosen"].get("key") == item["choice_key"] and same_memory


# What decides how fast a release decodes, besides the machine.
SPEED = (
    "model", "mmproj", "draft", "backend", "devices", "n_gpu_layers", "threads", "ctx_size", "cache_type_k",
    "cache_type_v", "flash_attn", "parallel", "kv_unified", "batch_size", "ubatch_size", "load_mode", "environment",
    "extra_args",
)  # fmt: skip


def speed_key(instance: Instance) -> str:
    """What is the same wherever two releases can be compared by their speed."""
    digest = str(instance.listed.get(instance.item["model"], {}).get("sha256", ""))
    words = [digest, {key: instance.item.get(key) for key in SPEED}]
    return hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode("utf-8")).hexdigest()


def rate_before(state: dict[str, Any], key: str, release: str) -> float | None:
    """The tokens per second of another release at its gate, with the same settings; None where none is known."""
    if state.get("speed_key") != key or state.get("release") == release:
        return None
    rate = (state.get("gate") or {}).get("tokens_per_second")
    return float(rate) if rate else None


def listener(port: int) -> tuple[int, str] | None:
    """The process that listens on a TCP port, found as ss finds it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in inodes:
                        return int(process.name), (process / "comm").read_text(encoding="utf-8").strip()
    return None


def difference(path: Path, before: bytes | None, after: bytes | None) -> dict[str, str]:
    """A diff for people; secrets are counted, never shown."""

    def text(content: bytes | None, changed: bool) -> str:
        if content is None:
            return ""
        if path.name in SECRET_FILES:
            kind = f"{len(content.split())} keys" if path.name == "api-keys" else "a private key"
            return f"{kind}, not shown{' (changed)' if changed else ''}\n"
        return content.decode("utf-8", "replace")

    return {
        "before": text(before, False),
        "after": text(after, before is not None),
        "before_header": str(path),
        "after_header": str(path),
    }


def main() -> None:
    # A hardened login's umask (027, 077) would cut the modes of folders that the service's user must reach. Secrets get
    # theirs by name.
    os.umask(0o022)
    module = Module(
        argument_spec={
            "instances": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": INSTANCE_SPEC,
            },
            # With its own options, so that keys among them are as secret as in an instance: -vvv shows the values of
            # a plain dict.
            "defaults": {"type": "dict", "default": {}, "options": SETTINGS_SPEC},
            "models": {"type": "list", "elements": "dict", "default": []},
            "model_dir": {"type": "path", "default": "/var/lib/llamafleet/models"},
            "release": {"type": "path", "default": "/opt/llamafleet/current"},
            "user": {"type": "str", "default": "llamafleet"},
            "gate": {"type": "bool", "default": True},
            "gate_timeout": {"type": "int", "default": 120},
            "trial": {"type": "str", "choices": ["auto", "never"], "default": "auto"},
            "tolerance": {"type": "float", "default": 0.05},
            "textfile_directory": {"type": "str", "default": ""},
            "verify": {"type": "bool", "default": False},
            "plan": {"type": "bool", "default": True},
            "build": {"type": "str", "default": "auto"},
            "plan_devices": {"type": "list", "elements": "dict"},
            "plan_ram_bytes": {"type": "int"},
            "gtt_pending_bytes": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    module.working = True
    try:
        result = Worker(module).work()
    except (Failure, OSError, *REFUSALS) as exc:
        module.working = False
        trace = {"exception": traceback.format_exc()} if isinstance(exc, Unexpected) else {}
        module.fail_json(msg=reason_of(exc), **trace)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
