#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build llama.cpp on a builder, once for each set of inputs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_build
short_description: Build llama.cpp once for each set of inputs
version_added: 1.0.0
author:
  - llamafleet contributors (@llamafleet)
description:
  - Makes an artifact of llama.cpp or of a fork of it, one C(tar.gz) with a manifest that is installable at any path.
  - The build is named by a fingerprint of everything that decides its result, namely the commit or digest of the
    source, the backends, the options, the compilers with their versions, CMake, the architecture, the C library and the
    distribution with its release. The same fingerprint is never built twice, and another one never uses its folder.
  - The build runs detached on the builder. The play shows its progress; when the play is interrupted the build goes
    on, and the next run finds it. When the build itself is killed the next run goes on in the same folder.
  - The finished artifact is brought to O(cache_dir) on the controller. An artifact that is there already is not built.
  - Nothing is fetched besides the source, which is pinned.
options:
  source:
    description:
      - Where the tree comes from. C(kind) is V(git) (C(url) and C(commit), the whole commit id of 40 digits),
        V(archive) (C(url), or C(path) of a file on the controller, and C(sha256)), or V(directory) (C(path), a folder
        on the builder).
      - C(subdir) names the folder with llama.cpp's own C(CMakeLists.txt) where there are several. C(number) is the
        build number that C(llama-server --version) shows, and C(commit), with an archive or directory, the commit it
        shows.
    type: dict
    required: true
  backends:
    description: Backends to compile, any of V(cpu), V(cuda), V(rocm) and V(vulkan); V(cpu) is in every build.
    type: list
    elements: str
    default: [cpu]
  targets:
    description: Programs to build; V(llama-server) is always among them.
    type: list
    elements: str
    default: [llama-server]
  cpu_features:
    description: Instruction sets of an x86_64 build. Every host that gets the artifact needs them.
    type: list
    elements: str
    default: [sse42, avx, avx2, fma, f16c, bmi2]
  arm_arch:
    description: Value of C(-march) of an aarch64 build.
    type: str
    default: armv8.2-a+dotprod
  cuda_architectures:
    description: Compute capabilities without the dot of the GPUs that a CUDA build is for, such as V(89) or V(120).
    type: list
    elements: str
    default: []
  gpu_targets:
    description: The gfx names of the GPUs that a ROCm build is for, such as V(gfx1151).
    type: list
    elements: str
    default: []
  cache_type_pairs:
    description: Pairs of cache types that will be used, as V(K/V); they decide which attention kernels are compiled.
    type: list
    elements: str
    default: []
  rocwmma:
    description: Whether a ROCm build uses rocWMMA for attention.
    type: bool
    default: false
  tls:
    description:
      - Whether llama-server can serve and fetch over TLS, which needs OpenSSL's headers on the builder.
      - V(auto) takes it when they are there, V(required) refuses to build without, V(never) leaves it out.
    type: str
    choices: [auto, required, never]
    default: auto
  cmake_options:
    description: Further CMake options. One that the source does not know is refused.
    type: dict
    default: {}
  toolchain:
    description:
      - What the role C(toolchain) found. C(cmake_options), C(environment), C(host_compiler) and C(run_path) are used,
        of the entries in C(backends) that belong to O(backends) where it says them of each.
    type: dict
    default: {}
  directory:
    description: Folder on the builder for sources, build folders, logs and artifacts.
    type: path
    default: /var/lib/llamafleet/build
  ccache_dir:
    description: Folder of ccache, which is used where it is installed. Empty for C(ccache) below O(directory).
    type: path
    default: ''
  cache_dir:
    description: Folder on the controller that keeps artifacts.
    type: path
    default: ~/.cache/llamafleet/artifacts
  jobs:
    description:
      - Files to compile at once; V(0) for one for each processor, with 2 GiB of free memory for each. Builds that run
        side by side in one O(directory) share both.
    type: int
    default: 0
  keep:
    description: Finished artifacts that stay on the builder, each with its source.
    type: int
    default: 5
  allow_known_bad:
    description: Build a commit that is known to be bad.
    type: bool
    default: false
  operation:
    description: The step of the work; the action plugin of this module sets it.
    type: str
    choices: [plan, start, inspect]
    default: plan
  archive:
    description: The archive as the action plugin brought it to the builder; it sets this.
    type: path
    default: ''
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
seealso:
  - module: llamafleet.turboquant.llama_release
  - module: llamafleet.turboquant.artifact
"""

EXAMPLES = r"""
- name: Build the fork for the CPU
  llamafleet.turboquant.llama_build:
    source:
      kind: git
      url: https://github.com/TheTom/llama-cpp-turboquant.git
      commit: 69d8e4be47243e83b3d0d71e932bc7aa61c644dc
  become: true
  register: build

- name: Build an archive that lies on the controller for two kinds of NVIDIA GPU
  llamafleet.turboquant.llama_build:
    source:
      kind: archive
      path: files/llama.cpp.tar.gz
      sha256: b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
    backends: [cuda]
    cuda_architectures: ['89', '120']
  become: true
"""

RETURN = r"""
fingerprint:
  description: Name of the build; empty in check mode on a host whose compilers are still to be installed.
  type: str
  returned: success
  sample: 4f0d2c9a3b7e8d1f5a6b7c8d9e0f1a2b
artifact:
  description: The artifact on the controller.
  type: str
  returned: success
remote_artifact:
  description: The artifact on the builder; it is there only when the builder made it.
  type: str
  returned: success
manifest:
  description: The manifest of the artifact.
  type: dict
  returned: when the artifact exists
inputs:
  description: Everything that the fingerprint is made of.
  type: dict
  returned: success
pruned:
  description:
    - Files and folders below O(directory) on the builder that were removed, because no artifact that stays there, no
      build that runs and no build that was interrupted last needs them.
  type: list
  elements: str
  returned: when something was built, or brought from the builder
notes:
  description: What is known of this build and worth knowing before serving with it.
  type: list
  elements: str
  returned: success
log:
  description: The full log of the step that failed.
  type: str
  returned: failure
tail:
  description: The last 40 lines of that log.
  type: list
  elements: str
  returned: failure
rc:
  description: Exit code of the command that failed.
  type: int
  returned: failure
"""

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import (
    _artifact,
    _build_host,
    _build_job,
    _build_plan,
    _build_room,
    _build_source,
    _elf,
    _known_builds,
    _rocwmma,
)

_JOB_FILES = (_artifact, _build_job, _build_plan, _build_source, _elf, _rocwmma)
# Seconds that a job may take to begin.
PATIENCE = 10.0
_LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv[1]); from llamafleet_job import _build_job; "
    "raise SystemExit(_build_job.main(sys.argv[2]))"
)


def run_command(argv: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command that only answers a question."""
    done = subprocess.run(
        list(argv),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")


class Builder:
    """The builder that this module runs on."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.root = Path(params["directory"])
        self.backends = _build_plan.check_backends(params["backends"])
        toolchain = _build_plan.toolchain_for(params["toolchain"], self.backends)
        self.environment = toolchain["environment"]
        self.toolchain_options = toolchain["cmake_options"]
        self.host_compiler = toolchain["host_compiler"]
        # What conda's compilers make needs conda's libraries when it runs, and no loader looks for AMD's own ROCm.
        self.rpath = toolchain["run_path"]

    def plan(self) -> dict[str, Any]:
        """Decide the build, look at the builder, and name the result."""
        params = self.params
        source = _build_plan.parse_source(params["source"])
        if source.kind == "directory":
            source = _build_plan.parse_source(params["source"], _build_source.digest_directory(Path(source.path)))
        # What a folder holds no commit tells.
        commit = "" if source.kind == "directory" else str(params["source"].get("commit") or "")
        if _known_builds.is_default(commit) and source.number == 0:
            source = source._replace(number=_known_builds.DEFAULT_NUMBER)
        backends = self.backends
        repository = _known_builds.repository_of(f"{source.url} {source.path}")
        refused = None
        if source.kind != "directory":
            refused = _known_builds.number_missing(repository, source.number, commit)
        if refused and not params["allow_known_bad"]:
            raise _build_plan.BuildError(refused)

        given = {
            name: _build_plan.cmake_value(value)
            for name, value in {**self.toolchain_options, **params["cmake_options"]}.items()
        }
        tls = params["tls"] == "required" or (params["tls"] == "auto" and _build_host.has_openssl(given))
        request = _build_plan.make_request(
            source=source,
            architecture=os.uname().machine,
            backends=backends,
            targets=params["targets"],
            cpu_features=params["cpu_features"],
            arm_arch=params["arm_arch"],
            cuda_architectures=params["cuda_architectures"],
            gpu_targets=params["gpu_targets"],
            cache_type_pairs=params["cache_type_pairs"],
            rocwmma=params["rocwmma"],
            tls=tls,
            cmake_options=params["cmake_options"],
            toolchain_options=self.toolchain_options,
            rpath=self.rpath,
        )
        targets = request.options["GPU_TARGETS"].split(";") if "rocm" in backends else []
        known = _known_builds.look_up(repository, source.number, commit, backends, targets)
        refused = _known_builds.refusal(known)
        if refused and not params["allow_known_bad"]:
            raise _build_plan.BuildError(refused)
        if params["rocwmma"] and "rocm" in backends:
            _build_plan.check_rocwmma(targets, _build_host.rocwmma_version(self.environment))
        architectures = request.options["CMAKE_CUDA_ARCHITECTURES"].split(";") if "cuda" in backends else []
        need = _build_plan.disk_needed(backends, max(len(architectures), len(targets)))
        found: dict[str, Any] = {
            "notes": [f"{row.why} ({row.source})" for row in known if row.verdict in ("note", "lacks")],
            "whole_mib": need,
            "free_mib": _build_host.free_mib(self.root),
            "request": request,
        }
        host = _build_host.probe(run_command, backends, request.options, self.environment, self.host_compiler)
        # What was found is also what CMake gets: it must not find another one.
        for language, key in (("C", "c"), ("CXX", "cxx"), ("CUDA", "cuda"), ("HIP", "hip")):
            if key in host["compilers"]:
                request.options[f"CMAKE_{language}_COMPILER"] = host["compilers"][key]["path"]
        if "cuda_host" in host["compilers"]:
            request.options["CMAKE_CUDA_HOST_COMPILER"] = host["compilers"]["cuda_host"]["path"]
        inputs = _build_plan.fingerprint_inputs(request, host)
        fingerprint = _build_plan.fingerprint(inputs)
        artifact = self.root / "artifacts" / f"{fingerprint}{_artifact.SUFFIX}"
        tree = self.root / "sources" / source.name
        found.update(
            host=host,
            inputs=inputs,
            fingerprint=fingerprint,
            need_mib=_build_room.still_needed(need, self.root / "work" / fingerprint),
            artifact=artifact,
            artifact_present=artifact.is_file(),
            archive_needed=bool(source.kind == "archive" and source.path and not tree.is_dir()),
        )
        if found["free_mib"] < found["need_mib"]:
            # It is removed before the build begins.
            found["free_mib"] += sum(_build_room.used_mib(path) for path in self.superfluous(found))
        return found

    def start(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Start the build, or find the one that runs."""
        with _build_room.alone(self.root):
            return self._start(plan)

    def _start(self, plan: dict[str, Any]) -> dict[str, Any]:
        request = plan["request"]
        host = plan["host"]
        work = self.root / "work" / plan["fingerprint"]
        if _build_job.alive(work):
            return {"attached": True, "status": str(work / "status.json")}
        pruned = self._prune(plan)
        promised = _build_room.promised_mib(self.root, plan["fingerprint"])
        _build_plan.check_disk(plan["need_mib"], _build_host.free_mib(self.root), str(self.root), promised)
        for folder in (self.root, work, work / "log", self.root / "artifacts", self.root / "downloads"):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.params["archive"]:
            kept = self.root / "downloads" / request.source.identity
            shutil.copyfile(self.params["archive"], f"{kept}.sent")
            Path(f"{kept}.sent").replace(kept)
        elif plan["archive_needed"] and not (self.root / "downloads" / request.source.identity).is_file():
            raise _build_plan.BuildError(
                f"the archive {request.source.path} was not brought to this builder: this module runs through its "
                "action plugin, which copies it from the controller"
            )
        status = work / "status.json"
        if status.exists():
            status.unlink()
        package = work / "job" / "llamafleet_job"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("", encoding="utf-8")
        for module in _JOB_FILES:
            (package / f"{module.__name__.rpartition('.')[2]}.py").write_text(
                inspect.getsource(module), encoding="utf-8"
            )
        job = {
            "fingerprint": plan["fingerprint"],
            "directory": str(self.root),
            "source": request.source._asdict(),
            "options": request.options,
            "optional": request.optional,
            "asked": request.asked,
            "targets": request.targets,
            "cpu_flags": request.cpu_flags,
            "environment": self.environment,
            "run_path": self.rpath,
            "programs": host["programs"],
            "ccache": host["programs"]["ccache"],
            "ccache_dir": self.params["ccache_dir"] or str(self.root / "ccache"),
            "jobs": self.params["jobs"],
            "need_mib": plan["whole_mib"],
            "manifest": {
                "source": request.source.describe(),
                "commit": request.source.commit,
                "build_number": request.source.number,
                "backends": request.backends,
                "compilers": host["compilers"],
                "cmake": host["cmake"],
                "distribution": host["distribution"],
            },
        }
        _build_job.write_json(work / "job.json", job)
        command = [sys.executable, "-I", "-c", _LAUNCH, str(work / "job"), str(work / "job.json")]
        started = _build_job.detach(command, work / "log" / "job.log", work)
        # From its first word on it is found by its lock, and only then may the next one look.
        limit = time.monotonic() + PATIENCE
        while not status.exists() and started.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        return {"attached": False, "status": str(status), "pruned": pruned}

    def inspect(self, fingerprint: str) -> dict[str, Any]:
        """Say what became of a build."""
        work = self.root / "work" / _artifact.check_fingerprint(fingerprint)
        log = work / "log" / "job.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        return {"alive": _build_job.alive(work), "job_log": text.splitlines()[-_build_job.TAIL :]}

    def superfluous(self, plan: dict[str, Any]) -> list[Path]:
        """Return what this builder keeps and nobody needs, once this build is made or has its turn."""
        return _build_room.superfluous(
            self.root, self.params["keep"], plan["fingerprint"], plan["request"].source._asdict()
        )

    def prune(self, plan: dict[str, Any]) -> list[str]:
        """Remove what nobody needs, while no build can begin that would."""
        with _build_room.alone(self.root):
            return self._prune(plan)

    def _prune(self, plan: dict[str, Any]) -> list[str]:
        gone = _build_room.remove(self.superfluous(plan))
        return sorted(str(path.relative_to(self.root)) for path in gone)


def main() -> None:
    """Run one step."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "dict", "required": True},
            "backends": {"type": "list", "elements": "str", "default": ["cpu"]},
            "targets": {"type": "list", "elements": "str", "default": ["llama-server"]},
            "cpu_features": {
                "type": "list",
                "elements": "str",
                "default": ["sse42", "avx", "avx2", "fma", "f16c", "bmi2"],
            },
            "arm_arch": {"type": "str", "default": "armv8.2-a+dotprod"},
            "cuda_architectures": {"type": "list", "elements": "str", "default": []},
            "gpu_targets": {"type": "list", "elements": "str", "default": []},
            "cache_type_pairs": {"type": "list", "elements": "str", "default": []},
            "rocwmma": {"type": "bool", "default": False},
            "tls": {"type": "str", "choices": ["auto", "required", "never"], "default": "auto"},
            "cmake_options": {"type": "dict", "default": {}},
            "toolchain": {"type": "dict", "default": {}},
            "directory": {"type": "path", "default": "/var/lib/llamafleet/build"},
            "ccache_dir": {"type": "path", "default": ""},
            "cache_dir": {"type": "path", "default": "~/.cache/llamafleet/artifacts"},
            "jobs": {"type": "int", "default": 0},
            "keep": {"type": "int", "default": 5},
            "allow_known_bad": {"type": "bool", "default": False},
            "operation": {"type": "str", "choices": ["plan", "start", "inspect"], "default": "plan"},
            "archive": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        builder = Builder(module.params)
        plan = builder.plan()
    except _build_host.ToolMissing as exc:
        if not module.check_mode:
            module.fail_json(msg=str(exc))
        # In check mode the role toolchain has only said that it would install them.
        module.exit_json(changed=True, fingerprint="", artifact="", msg=f"{exc}; the fingerprint is decided then")
    except (ValueError, OSError) as exc:
        module.fail_json(msg=str(exc))

    answer: dict[str, Any] = {
        "changed": False,
        "fingerprint": plan["fingerprint"],
        "inputs": json.loads(json.dumps(plan["inputs"])),
        "notes": plan["notes"],
        "remote_artifact": str(plan["artifact"]),
        "artifact_present": plan["artifact_present"],
        "archive_needed": plan["archive_needed"],
        "need_mib": plan["need_mib"],
        "free_mib": plan["free_mib"],
        "time": time.time(),
    }
    try:
        if module.params["operation"] == "start" and not module.check_mode:
            answer.update(builder.start(plan))
        elif module.params["operation"] == "inspect":
            answer.update(builder.inspect(plan["fingerprint"]))
            if plan["artifact_present"] and not module.check_mode:
                answer["pruned"] = builder.prune(plan)
                answer["changed"] = bool(answer["pruned"])
    except (ValueError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
