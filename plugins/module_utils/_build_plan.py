# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide what one build is: its source, its CMake options and the fingerprint of all that decides its result.

Private to the collection: it may change at any time. Pure functions, no Ansible imports.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from . import _rocwmma

# Raised when the recipe itself changes so that equal inputs would give another artifact.
RECIPE = 2

# 128 bits: enough that two builds never share a name.
FINGERPRINT_DIGITS = 32

BACKENDS = ("cpu", "cuda", "rocm", "vulkan")
GPU_BACKENDS = ("cuda", "rocm", "vulkan")

SOURCE_KEYS = {
    "git": {"url", "commit", "number", "subdir"},
    "archive": {"url", "path", "sha256", "commit", "number", "subdir"},
    "directory": {"path", "commit", "number", "subdir"},
}

# The instruction sets that a build may name, and the flag of /proc/cpuinfo that a host needs for each.
X86_FEATURES = {
    "sse42": "sse4_2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi2": "bmi2",
    "avx_vnni": "avx_vnni",
    "avx512": "avx512f",
    "avx512_vbmi": "avx512vbmi",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
}

# Options that the recipe needs as they are: with others an artifact would not run where it is installed.
RESERVED = {
    "BUILD_SHARED_LIBS": "libraries are shared, so that tools and server are small and backends can be loaded",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "files are taken from the build folder, so their run path must be final there",
    "CMAKE_INSTALL_RPATH": "libraries are found relative to the program, so that a release runs at any path",
    "CMAKE_INSTALL_RPATH_USE_LINK_PATH": "run paths of the builder would leave the release",
    "GGML_BACKEND_DL": "it follows from llama_build_backends: on with more than one GPU backend",
    "GGML_CUDA": "it follows from llama_build_backends",
    "GGML_HIP": "it follows from llama_build_backends",
    "GGML_NATIVE": "it compiles for the builder's own processor, and such files crash on others (and, with AMX, on "
    "some virtual machines that report it): name the instruction sets in llama_build_cpu_features",
    "GGML_VULKAN": "it follows from llama_build_backends",
    "LLAMA_BUILD_COMMIT": "it follows from llama_build_source",
    "LLAMA_BUILD_NUMBER": "it follows from llama_build_source.number",
}

# Variables of CMake that list the GPUs of a build.
GPU_LISTS = ("CMAKE_CUDA_ARCHITECTURES", "CMAKE_HIP_ARCHITECTURES", "GPU_TARGETS", "AMDGPU_TARGETS")

# Flags that the recipe or the toolchain needs; what the inventory sets there is added and does not replace them.
ADDED_FLAGS = ("CMAKE_CUDA_FLAGS", "CMAKE_EXE_LINKER_FLAGS")

# K/V pairs of cache types whose CUDA and HIP kernels are in every build of the fork, and the types whose
# pairs GGML_CUDA_FA_ALL_QUANTS adds (read in ggml-cuda/fattn.cu of commit 69d8e4be: the kernels that are
# compiled, not the wider support test, which lets through pairs that abort).
_TURBO = ("turbo2", "turbo3", "turbo4")
FA_DEFAULT_PAIRS = frozenset(
    [("f16", "f16"), ("bf16", "bf16"), ("q8_0", "q8_0"), ("q4_0", "q4_0")]
    + [(key, value) for key in ("f16", "q8_0") for value in _TURBO]
    + [(key, "q8_0") for key in _TURBO]
    + [(key, value) for key in _TURBO for value in _TURBO]
)
# What a pair becomes: V of turbo2 makes V of the first and last two layers q8_0 (src/llama-kv-cache.cpp:287-291).
FA_BRINGS = {("f16", "turbo2"): ("f16", "q8_0")}
FA_ALL_QUANTS_TYPES = ("f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")

# What the units of llama_server hide from the service, by ProtectHome and PrivateTmp.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")

# Figures in MiB: source, objects and artifact of one build (docs/builds.md has the measurements).
DISK_MIB = {"cpu": 1024, "vulkan": 1024, "cuda": 4096, "rocm": 6144}


class BuildError(ValueError):
    """A build cannot be done as asked."""


class Source(NamedTuple):
    """A source tree that is pinned: its bytes are known before it is fetched."""

    kind: str
    # What decides the bytes: the commit, the archive's sha256, or the digest of the folder's files.
    identity: str
    url: str
    path: str
    subdir: str
    commit: str
    number: int

    @property
    def name(self) -> str:
        """The name of the folder that holds the tree on a builder."""
        return f"{self.kind}-{self.identity}"

    def describe(self) -> dict[str, Any]:
        """Say in a manifest where the tree came from."""
        said: dict[str, Any] = {"kind": self.kind}
        for key in ("url", "path", "subdir"):
            if getattr(self, key):
                said[key] = getattr(self, key)
        said[{"git": "commit", "archive": "sha256", "directory": "digest"}[self.kind]] = self.identity
        return said


def parse_source(raw: Any, digest: str = "") -> Source:
    """Check a `llama_build_source` and return it; `digest` is that of a directory's files, once known."""
    if not isinstance(raw, dict):
        raise BuildError(f"llama_build_source is a {type(raw).__name__}: it must be a mapping with `kind`")
    given = {str(key): value for key, value in raw.items() if value is not None and value != ""}
    kind = str(given.pop("kind", ""))
    if kind not in SOURCE_KEYS:
        raise BuildError(f"source kind {kind!r} is unknown: it must be git, archive or directory")
    strange = sorted(set(given) - SOURCE_KEYS[kind])
    if strange:
        raise BuildError(
            f"a source of kind {kind} has no {', '.join(strange)}: it takes {', '.join(sorted(SOURCE_KEYS[kind]))}"
        )
    text = {key: str(value) for key, value in given.items()}
    url, path, subdir, commit = (text.get(key, "") for key in ("url", "path", "subdir", "commit"))
    number = _number(given.get("number", 0))
    if subdir and (subdir.startswith("/") or ".." in subdir.split("/")):
        raise BuildError(f"source subdir {subdir!r} leaves the source: it must be a relative path without ..")

    if kind == "git":
        if not url:
            raise BuildError("a source of kind git needs a url")
        if url.startswith("-"):
            raise BuildError(f"source url {url!r} begins with a dash, so git would read it as an option")
        if re.fullmatch(r"[0-9a-f]{40}", commit) is None:
            raise BuildError(
                f"source commit {commit!r} is not a commit id of 40 digits 0-9 and a-f: branches, tags and short ids "
                f"move or may come to name another commit; take the id that `git ls-remote {url} {commit or 'HEAD'}` "
                "prints"
            )
        return Source(kind, commit, url, "", subdir, commit[:9], number)

    if commit and re.fullmatch(r"[0-9a-f]{7,40}", commit) is None:
        raise BuildError(f"source commit {commit!r} must be 7 to 40 digits 0-9 and a-f: it labels the build")
    if kind == "archive":
        if bool(url) == bool(path):
            raise BuildError(
                "a source of kind archive needs either a url or a path (a file on the controller), "
                f"and it has {'both' if url else 'neither'}"
            )
        if url and re.match(r"(https?|file)://", url) is None:
            raise BuildError(f"source url {url!r} must begin with https://, http:// or file://")
        sha256 = text.get("sha256", "").lower()
        if re.fullmatch(r"[0-9a-f]{64}", sha256) is None:
            raise BuildError(
                f"source sha256 {sha256!r} is not a digest of 64 digits 0-9 and a-f: take the one that its publisher "
                "gives, or that `sha256sum` prints for a copy you trust"
            )
        return Source(kind, sha256, url, path, subdir, commit[:9] or sha256[:9], number)

    if not path.startswith("/"):
        raise BuildError(f"source path {path!r} must be absolute: it is a folder on the builder")
    return Source(kind, digest, "", path, subdir, commit[:9] or digest[:9] or "unknown", number)


def _number(value: Any) -> int:
    if isinstance(value, bool) or re.fullmatch(r"[0-9]{1,9}", str(value)) is None:
        raise BuildError(f"source number {value!r} must be a whole number: it is what `--version` shows as the build")
    return int(value)


def check_backends(backends: Any) -> list[str]:
    """Return the backends in one order, with cpu, which every build has."""
    if not isinstance(backends, list) or not backends:
        raise BuildError(f"llama_build_backends is {backends!r}: it must be a list with at least one backend")
    unknown = sorted({str(name) for name in backends} - set(BACKENDS))
    if unknown:
        raise BuildError(f"backend {', '.join(unknown)} is unknown: {', '.join(BACKENDS)} are known")
    return sorted({"cpu", *(str(name) for name in backends)})


def check_targets(targets: Any) -> list[str]:
    """Return the programs to build, each once; llama-server is always among them."""
    if not isinstance(targets, list):
        raise BuildError(f"llama_build_targets is {targets!r}: it must be a list of programs")
    for name in targets:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", str(name)) is None:
            raise BuildError(f"target {name!r} is no name of a program")
    return sorted({"llama-server", *(str(name) for name in targets)})


def cpu_options(architecture: str, features: Sequence[str], arm_arch: str) -> dict[str, str]:
    """Name every instruction set, on or off: what is left to defaults changes with the environment."""
    options = {"GGML_NATIVE": "OFF"}
    if architecture == "x86_64":
        unknown = sorted(set(features) - set(X86_FEATURES))
        if unknown:
            raise BuildError(
                f"instruction set {', '.join(unknown)} is unknown: llama_build_cpu_features may hold "
                f"{', '.join(X86_FEATURES)}"
            )
        for name in X86_FEATURES:
            options[f"GGML_{name.upper()}"] = "ON" if name in features else "OFF"
    elif architecture == "aarch64":
        if re.fullmatch(r"armv[0-9][0-9a-z.+-]*", arm_arch) is None:
            raise BuildError(f"llama_build_arm_arch {arm_arch!r} must be a value of -march such as armv8.2-a+dotprod")
        options["GGML_CPU_ARM_ARCH"] = arm_arch
    return options


def cpu_flags(architecture: str, features: Iterable[str]) -> list[str]:
    """Return the flags of /proc/cpuinfo that a host needs for the named instruction sets."""
    return [X86_FEATURES[name] for name in X86_FEATURES if name in set(features)] if architecture == "x86_64" else []


def check_cuda_architectures(architectures: Sequence[Any]) -> list[str]:
    """Return CMAKE_CUDA_ARCHITECTURES, which must name the GPUs and never ask the builder for its own."""
    names = [str(name) for name in architectures]
    if not names:
        raise BuildError(
            "llama_build_cuda_architectures is empty: a CUDA build names the GPUs it is for, as compute capability "
            "without the dot (RTX 4090: 89, H100: 90, RTX 5090: 120), because the builder may have another or none"
        )
    for name in names:
        if re.fullmatch(r"[0-9]{2,3}[af]?(-real|-virtual)?", name) is None:
            raise BuildError(
                f"CUDA architecture {name!r} must be a compute capability without the dot such as 89, 90 or 120, "
                "with -real or -virtual where wanted; `native` would be the builder's own GPU"
            )
    return sorted(set(names), key=lambda name: (int(re.match(r"[0-9]+", name).group()), name))  # type: ignore[union-attr] # the pattern above has digits first


def check_gpu_targets(targets: Sequence[Any]) -> list[str]:
    """Return the gfx names of a ROCm build."""
    names = [str(name) for name in targets]
    if not names:
        raise BuildError(
            "llama_build_gpu_targets is empty: a ROCm build names the GPUs it is for, such as gfx1151 (Strix Halo), "
            "gfx1100 (RX 7900) or gfx90a (MI210), because the builder may have another or none"
        )
    for name in names:
        if re.fullmatch(r"gfx[0-9]{1,2}[0-9][0-9a-f](:[a-z]+[+-])*", name) is None:
            raise BuildError(f"GPU target {name!r} must be a gfx name such as gfx1151; `native` would be the builder's")
    return sorted(set(names))


def check_rocwmma(targets: Sequence[str], version: tuple[int, int, int] | None) -> None:
    """Refuse rocWMMA attention where it is known to be wrong."""
    if version is None:
        raise BuildError(
            "llama_build_rocwmma is on, and the builder has no rocWMMA headers: the role toolchain installs "
            "rocwmma-devel where llama_build_rocwmma is set for the builder or for a host that it builds for"
        )
    for target in targets:
        why = _rocwmma.problem(target, version)
        if why:
            raise BuildError(f"{why}: take another release of rocWMMA where that helps, or llama_build_rocwmma false")


def toolchain_for(toolchain: Mapping[str, Any], backends: Sequence[str]) -> dict[str, Any]:
    """Return what a toolchain says of a build with these backends alone.

    A toolchain that was made for several says of each what it takes: a build for Vulkan must not be given CUDA's
    options. One that somebody wrote by hand may say it without the backends.
    """
    parts = toolchain.get("backends") or {}
    chosen = [parts[name] for name in parts if name in backends] if parts else [toolchain]
    answer: dict[str, Any] = {"environment": {}, "cmake_options": {}, "run_path": [], "host_compiler": ""}
    for part in chosen:
        answer["environment"].update({str(key): str(value) for key, value in (part.get("environment") or {}).items()})
        answer["cmake_options"].update(part.get("cmake_options") or {})
        answer["run_path"] += [path for path in part.get("run_path") or [] if path not in answer["run_path"]]
        answer["host_compiler"] = str(part.get("host_compiler") or answer["host_compiler"])
    return answer


def is_hidden(folder: str) -> bool:
    """Say whether a folder is one that the service cannot see, whatever its mode."""
    return f"{posixpath.normpath(folder)}/".startswith(tuple(f"{top}/" for top in HIDDEN))


def check_run_path(folders: Sequence[str]) -> list[str]:
    """Return the folders in which the toolchain says that libraries lie, or refuse what a service cannot read."""
    for folder in folders:
        if not folder.startswith("/") or is_hidden(folder):
            raise BuildError(
                f"toolchain_result.run_path names {folder!r}: it must be a whole path, and none below "
                f"{', '.join(HIDDEN)}, which the service does not see"
            )
    return list(folders)


def pairs_beyond_default(pairs: Sequence[Any]) -> list[tuple[str, str]]:
    """Return the pairs of cache types whose attention kernels are not in every CUDA and HIP build."""
    wanted: set[tuple[str, str]] = set()
    for pair in pairs:
        key, slash, value = str(pair).partition("/")
        if not slash or not key or not value:
            raise BuildError(f"cache type pair {pair!r} must be written K/V, such as q8_0/turbo4")
        wanted.add(FA_BRINGS.get((key, value), (key, value)))
    return sorted(wanted - FA_DEFAULT_PAIRS)


def pairs_of_instances(instances: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[str]:
    """Return the pairs of cache types that instances name; what is auto is chosen among those of every build."""
    pairs = set()
    for instance in instances:
        said = {**defaults, **{key: value for key, value in instance.items() if value is not None}}
        types = [str(said.get(key) or "f16") for key in ("cache_type_k", "cache_type_v")]
        if said.get("backend") != "cpu" and said.get("state") != "absent" and "auto" not in types:
            pairs.add("/".join(types))
    return sorted(pairs)


def attention_options(pairs: Sequence[Any]) -> dict[str, str]:
    """Return what the cache types in use ask of the CUDA and HIP attention kernels.

    Both spellings are returned; a tree that has the list of pairs gets that one alone (see `for_tree`).
    """
    extra = pairs_beyond_default(pairs)
    for key, value in extra:
        if key not in FA_ALL_QUANTS_TYPES or value not in FA_ALL_QUANTS_TYPES:
            raise BuildError(
                f"cache types {key}/{value} have no CUDA or HIP attention kernel in any build: llama-server would "
                "abort or refuse them; take a pair such as q8_0/turbo4, q8_0/q8_0 or f16/f16"
            )
    listed = sorted({"f16-f16", "bf16-bf16", "q4_0-q4_0", "q8_0-q8_0"} | {f"{key}-{value}" for key, value in extra})
    return {
        "GGML_CUDA_FA": "ON",
        "GGML_CUDA_FA_ALL_QUANTS": "ON" if extra else "OFF",
        "GGML_CUDA_FA_QUANTS": ";".join(listed),
    }


class Request(NamedTuple):
    """Everything that the inventory says of one build, checked."""

    source: Source
    backends: list[str]
    targets: list[str]
    # Options that every tree knows or that CMake itself knows.
    options: dict[str, str]
    # Options that are passed only to a tree that declares them.
    optional: dict[str, str]
    # Names that the tree must declare: the user asked for them.
    asked: list[str]
    cpu_flags: list[str]


def make_request(
    source: Source,
    architecture: str,
    backends: Any,
    targets: Any,
    cpu_features: Sequence[str],
    arm_arch: str,
    cuda_architectures: Sequence[Any],
    gpu_targets: Sequence[Any],
    cache_type_pairs: Sequence[Any],
    rocwmma: bool,
    tls: bool,
    cmake_options: dict[str, Any],
    toolchain_options: dict[str, Any],
    rpath: Sequence[str],
) -> Request:
    """Turn checked wishes into CMake options; refuse what cannot be built or would not run."""
    kinds = check_backends(backends)
    toolchain = dict(toolchain_options)
    # The GPUs that the inventory names stand above those that the toolchain was planned for.
    planned = {name: [part for part in str(toolchain.pop(name, "")).split(";") if part] for name in GPU_LISTS}
    if "cuda" in kinds:
        cuda_architectures = cuda_architectures or planned["CMAKE_CUDA_ARCHITECTURES"]
    if "rocm" in kinds:
        gpu_targets = gpu_targets or planned["GPU_TARGETS"]
    gpus = [name for name in kinds if name in GPU_BACKENDS]
    options: dict[str, str] = {
        "BUILD_SHARED_LIBS": "ON",
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": ":".join(["$ORIGIN/../lib", *check_run_path(rpath)]),
        "CMAKE_INSTALL_RPATH_USE_LINK_PATH": "OFF",
        "GGML_RPC": "OFF",
        "LLAMA_BUILD_COMMIT": source.commit,
        "LLAMA_BUILD_NUMBER": str(source.number),
        "GGML_BACKEND_DL": "ON" if len(gpus) > 1 else "OFF",
        "GGML_CUDA": "ON" if "cuda" in kinds else "OFF",
        "GGML_HIP": "ON" if "rocm" in kinds else "OFF",
        "GGML_VULKAN": "ON" if "vulkan" in kinds else "OFF",
    }
    options.update(cpu_options(architecture, cpu_features, arm_arch))
    optional = {
        # The launcher is given by CMake's own variables.
        "GGML_CCACHE": "OFF",
        # Nothing is fetched while building: what decides the result is pinned.
        "GGML_OPENMP_FETCH": "OFF",
        "LLAMA_BUILD_BORINGSSL": "OFF",
        "LLAMA_BUILD_LIBRESSL": "OFF",
        "LLAMA_USE_PREBUILT_UI": "OFF",
        "LLAMA_BUILD_APP": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
        "LLAMA_BUILD_SERVER": "ON",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_TOOLS": "ON",
        "LLAMA_BUILD_UI": "OFF",
        "LLAMA_BUILD_WEBUI": "OFF",
        "LLAMA_OPENSSL": "ON" if tls else "OFF",
    }
    if "cuda" in kinds:
        # A builder without a GPU has no libcuda.so.1 of a driver, and conda's linker does not look where it is.
        # Upstream's own builds without a driver pass this (.devops/cuda.Dockerfile).
        options["CMAKE_EXE_LINKER_FLAGS"] = "-Wl,--allow-shlib-undefined"
        # On by itself where the builder happens to have the library, and every host would have to have it too.
        optional["GGML_CUDA_NCCL"] = "OFF"
        options["CMAKE_CUDA_ARCHITECTURES"] = ";".join(check_cuda_architectures(cuda_architectures))
    if "rocm" in kinds:
        names = check_gpu_targets(gpu_targets)
        options["CMAKE_HIP_ARCHITECTURES"] = options["GPU_TARGETS"] = ";".join(names)
        optional["GGML_HIP_ROCWMMA_FATTN"] = "ON" if rocwmma else "OFF"
    if "cuda" in kinds or "rocm" in kinds:
        optional.update(attention_options(cache_type_pairs))

    # What the toolchain gives stands above the recipe, and what the user gives above both.
    for origin, given in (
        ("toolchain_result.cmake_options", toolchain),
        ("llama_build_cmake_options", cmake_options),
    ):
        for key, value in given.items():
            name = str(key)
            if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
                raise BuildError(f"{origin} has {name!r}, which is no name of a CMake variable")
            text = cmake_value(value)
            if name in RESERVED and options.get(name) != text:
                raise BuildError(f"{origin} sets {name} to {text!r}, and the role sets it: {RESERVED[name]}")
            if name in GPU_LISTS and "native" in text:
                raise BuildError(f"{origin} sets {name} to {text!r}: it must name the GPUs, never the builder's own")
            optional.pop(name, None)
            # Flags come on top of those that the build needs.
            needed = options.get(name) if name in ADDED_FLAGS else None
            options[name] = f"{needed} {text}" if needed and needed not in text else text
    return Request(
        source=source,
        backends=kinds,
        targets=check_targets(targets),
        options=dict(sorted(options.items())),
        optional=dict(sorted(optional.items())),
        asked=sorted(str(name) for name in cmake_options),
        cpu_flags=cpu_flags(architecture, cpu_features),
    )


def cmake_value(value: Any) -> str:
    """Return a value of the inventory as CMake is given it."""
    if isinstance(value, bool):
        return "ON" if value else "OFF"
    if isinstance(value, (list, tuple)):
        return ";".join(cmake_value(item) for item in value)
    return str(value)


def for_tree(request_options: dict[str, str], optional: dict[str, str], declared: Iterable[str]) -> dict[str, str]:
    """Return the options to pass to a tree that declares these names."""
    known = set(declared)
    passed = dict(request_options)
    for name, value in optional.items():
        # Where pairs can be listed, the older switch would compile them all.
        if name == "GGML_CUDA_FA_ALL_QUANTS" and "GGML_CUDA_FA_QUANTS" in known:
            continue
        if name in known:
            passed[name] = value
    return dict(sorted(passed.items()))


_DECLARES = re.compile(
    r"^\s*(?:option|cmake_dependent_option)\s*\(\s*\"?([A-Za-z_][A-Za-z0-9_]*)\"?"
    r"|^\s*set\s*\(\s*([A-Za-z_][A-Za-z0-9_]*)\s[^)]*?\bCACHE\b",
    re.MULTILINE | re.IGNORECASE,
)


def declared_options(text: str) -> list[str]:
    """Return the names that a CMake file offers as options."""
    return sorted({first or second for first, second in _DECLARES.findall(text)})


def fingerprint(inputs: dict[str, Any]) -> str:
    """Return the name of a build: equal for equal inputs, different for different ones."""
    text = json.dumps({"recipe": RECIPE, **inputs}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:FINGERPRINT_DIGITS]


def fingerprint_inputs(request: Request, host: dict[str, Any]) -> dict[str, Any]:
    """Return everything that decides the result of a build, and nothing else.

    The address of the source is not part of it: a mirror gives the same bytes. Neither are ccache, the
    number of jobs and the folder, which change how long a build takes but not what comes out.
    """
    return {
        "source": {
            "kind": request.source.kind,
            "identity": request.source.identity,
            "subdir": request.source.subdir,
        },
        "backends": request.backends,
        "targets": request.targets,
        "options": request.options,
        "optional": request.optional,
        "architecture": host["architecture"],
        "distribution": host["distribution"],
        "glibc": host["glibc"],
        "cmake": host["cmake"],
        "compilers": host["compilers"],
        "environment": host["environment"],
    }


def disk_needed(backends: Sequence[str], gpu_architectures: int) -> int:
    """Return the MiB that a build takes at most: source, objects, staged files and artifact."""
    need = 0
    for name in backends:
        factor = max(1, gpu_architectures) if name in ("cuda", "rocm") else 1
        need += DISK_MIB[name] * factor
    return need


def check_disk(need_mib: int, free_mib: int, folder: str, promised_mib: int = 0) -> None:
    """Refuse a build for which there is no room beside what those that run there will still take."""
    short = need_mib + promised_mib - free_mib
    if short > 0:
        taken = f", of which builds that run there will take up to {promised_mib} MiB" if promised_mib else ""
        wait = "wait for those builds to end, " if promised_mib else ""
        raise BuildError(
            f"this build takes up to {need_mib} MiB below {folder}, and {free_mib} MiB are free there{taken}: free "
            f"{short} MiB, {wait}or set llama_build_dir to a folder on a larger file system"
        )
