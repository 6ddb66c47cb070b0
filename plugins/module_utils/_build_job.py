# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The build itself: a process that outlives the connection which started it.

Private to the collection: it may change at any time. Standard library only: the module `llama_build`
copies this file and those it imports into the work folder and starts it there, detached. It writes
`status.json`, which the action plugin reads to show progress.

Interrupting the play leaves it running, and the next run finds it. When it is killed itself, the next
run goes on in the same build folder. The artifact appears by one rename, so it is whole or absent.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import _artifact, _build_plan, _build_source, _elf

TAIL = 40
HEARTBEAT = 5.0
# How long to wait for the compilers of a killed builder to notice and end.
ORPHANS = 60.0
ALREADY_RUNNING = 3

_PROGRESS = re.compile(r"^\[(\d+)/(\d+)\]")
# Lines that git writes over each other on a terminal.
_GIT_COUNTERS = re.compile(r"^(remote: )?[A-Z][a-z]+ (objects|deltas):")
_GIT_PROGRESS = re.compile(r"(Receiving objects|Resolving deltas):\s+(\d+)% \((\d+)/(\d+)\)")

# Kept from the environment of the play: where to reach the network, and nothing that decides the result.
KEPT = ("HOME", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class JobError(Exception):
    """The build ends here; the reader is told why, with the end of a log where there is one."""

    def __init__(self, message: str, rc: int | None = None, log: Path | None = None) -> None:
        super().__init__(message)
        self.rc = rc
        self.log = log


def detach(command: list[str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start a command that goes on when the task, its connection and Ansible itself have ended."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )


def write_json(path: Path, value: Any) -> None:
    """Write a file that readers see whole or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def tail(path: Path, count: int = TAIL) -> list[str]:
    """Return the last lines of a log, without the counters of what went well."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if _PROGRESS.match(line) is None and _GIT_COUNTERS.match(line) is None][-count:]


def build_environment(given: dict[str, str], base: dict[str, str]) -> dict[str, str]:
    """Return the environment of CMake and the compilers: made anew, so that CC, CFLAGS, CUDAHOSTCXX,
    NVCC_CCBIN, NVCC_PREPEND_FLAGS, NVCC_APPEND_FLAGS, CUDAARCHS and the like of a login shell have no say."""
    made = {name: base[name] for name in KEPT if base.get(name)}
    made.setdefault("HOME", "/root")
    made.update(
        PATH=STANDARD_PATH,
        LANG="C.UTF-8",
        LC_ALL="C.UTF-8",
        NINJA_STATUS="[%f/%t] ",
        # Dates compiled into files are those of no day. The instruction sets, which llama.cpp switches off
        # when it sees this variable, are all given by name.
        SOURCE_DATE_EPOCH=str(_artifact.EPOCH),
        # A tree inside another repository must not take over its commit.
        GIT_CEILING_DIRECTORIES="/",
        GIT_CONFIG_NOSYSTEM="1",
        GIT_TERMINAL_PROMPT="0",
    )
    made.update(given)
    return made


def source_name_maps(root: Path, build: Path) -> list[str]:
    """Return the flags under which a source file has the same name in every object, which asserts print.

    Builders keep their sources in different folders, and ccache hands the compiler each file by a path relative to
    the build folder, so that builds of other names find what it kept. Without the second map the bytes of a build
    would depend on whether the builder has ccache, which is no part of a fingerprint.
    """
    return [f"-ffile-prefix-map={old}=llama.cpp" for old in (str(root), os.path.relpath(root, build))]


def repository_name(url: str) -> str:
    """Return the name of the folder that keeps what was fetched from an address."""
    return f"{hashlib.sha256(url.encode('utf-8')).hexdigest()[:16]}.git"


class Job:
    """One build on one builder."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.job = description
        self.root = Path(description["directory"])
        self.fingerprint = _artifact.check_fingerprint(description["fingerprint"])
        self.work = self.root / "work" / self.fingerprint
        self.logs = self.work / "log"
        self.artifact = self.root / "artifacts" / f"{self.fingerprint}{_artifact.SUFFIX}"
        self.started = time.time()
        self.state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "pid": os.getpid(),
            "started": self.started,
            "phase": "start",
            "phase_started": self.started,
            "done": 0,
            "total": 0,
            "message": "",
            "finished": False,
            "failed": False,
        }
        self.lock_fd: int | None = None
        self._state_lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    # Status

    def say(self, phase: str | None = None, **values: Any) -> None:
        """Write the status that the play shows."""
        with self._state_lock:
            if phase is not None and phase != self.state["phase"]:
                self.state.update(phase=phase, phase_started=time.time(), done=0, total=0, message="")
            self.state.update(values)
            self.state["updated"] = time.time()
            write_json(self.work / "status.json", self.state)

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT):
            self.say()

    # Processes

    def command(
        self,
        argv: Sequence[str],
        log: Path,
        environment: dict[str, str],
        on_line: Callable[[str], None] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run a command, its output going to a log; it ends when this process ends."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            out.write((" ".join(argv) + "\n").encode("utf-8", "surrogateescape"))
            self._child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
                # The child holds the lock too: as long as a compiler of this build lives, no second builder
                # enters the build folder.
                pass_fds=() if self.lock_fd is None else (self.lock_fd,),
                preexec_fn=_end_with_parent,
            )
            pipe = self._child.stdout
            if pipe is None:
                raise JobError(f"{argv[0]} was started without a pipe")
            pending = b""
            for block in iter(lambda: os.read(pipe.fileno(), 65536), b""):
                out.write(block)
                out.flush()
                *lines, pending = re.split(rb"[\r\n]", pending + block)
                for line in lines:
                    if on_line is not None:
                        on_line(line.decode("utf-8", "replace"))
            rc = self._child.wait()
            self._child = None
        if rc != 0:
            raise JobError(f"{Path(argv[0]).name} ended with exit code {rc}", rc, log)

    def stop_child(self) -> None:
        """End the running command, as far as it lets itself be ended."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(10)
            except subprocess.TimeoutExpired:
                self._child.kill()

    # Phases

    def run(self) -> None:
        """Go through all phases; those that an earlier run finished are short."""
        if self.artifact.is_file():
            self.say("pack")
            _artifact.verify(self.artifact, self.fingerprint)
        else:
            root = self.source()
            options = self.configure(root)
            self.compile()
            stage = self.stage(root)
            self.pack(stage, options)
        shutil.rmtree(self.work / "build", ignore_errors=True)
        shutil.rmtree(self.work / "stage", ignore_errors=True)
        self.say(
            "done",
            finished=True,
            artifact=str(self.artifact),
            sha256=_artifact.sha256_file(self.artifact),
            size=self.artifact.stat().st_size,
            seconds=round(time.time() - self.started, 1),
        )

    def source(self) -> Path:
        """Get the source tree, once for all builds of it."""
        source = self.job["source"]
        sources = self.root / "sources"
        sources.mkdir(parents=True, exist_ok=True)
        tree = sources / f"{source['kind']}-{source['identity']}"
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        self.say("source")
        with (locks / f"{tree.name}.lock").open("w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.say(message="another build is getting the same source")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not tree.is_dir():
                for old in sources.glob(f".{tree.name}-*"):
                    # git's archive of the tree is a file.
                    if old.is_dir():
                        shutil.rmtree(old)
                    else:
                        old.unlink()
                temporary = sources / f".{tree.name}-{os.getpid()}"
                {"git": self._git, "archive": self._archive, "directory": self._directory}[source["kind"]](
                    source, temporary
                )
                temporary.rename(tree)
        return _build_source.find_root(tree, source["subdir"])

    def _git(self, source: dict[str, Any], destination: Path) -> None:
        url, commit = source["url"], source["identity"]
        git = self.job["programs"].get("git")
        if not git:
            raise JobError("a source of kind git needs the program git on the builder: run the role toolchain first")
        log = self.logs / "source.log"
        # In place of root's own. A source on this host may belong to anybody, and git serves a repository of another
        # user only where a file allows it: a process of its own serves it, which -c does not reach. Its owner decides
        # nothing by that: the commit id of 40 digits pins the content, a fetch runs no hook of the source, and what its
        # settings name as a remote of its own is not asked, which would run their commands as root (CVE-2024-32004).
        settings = self.work / "gitconfig"
        settings.write_text("[safe]\n\tdirectory = *\n", encoding="ascii")
        environment = {
            **build_environment({}, dict(os.environ)),
            "GIT_CONFIG_GLOBAL": str(settings),
            "GIT_NO_LAZY_FETCH": "1",
        }
        repository = self.root / "git" / repository_name(url)

        def progress(line: str) -> None:
            match = _GIT_PROGRESS.search(line)
            if match is not None:
                self.say(done=int(match.group(3)), total=int(match.group(4)), message=match.group(1).lower())

        def has_commit() -> bool:
            asked = [git, "--git-dir", str(repository), "cat-file", "-e", f"{commit}^{{commit}}"]
            return subprocess.run(asked, env=environment, stderr=subprocess.DEVNULL, check=False).returncode == 0

        fetch = [git, "--git-dir", str(repository), "fetch", "--no-tags", "--progress"]
        if not (repository / "HEAD").is_file():
            self.command([git, "init", "--bare", "--quiet", str(repository)], log, environment)
        if not has_commit():
            try:
                self.command([*fetch, "--depth", "1", "--", url, commit], log, environment, progress)
            except JobError:
                # Some servers give out branches only.
                self.say(message="fetching all branches")
                self.command([*fetch, "--", url, "+refs/heads/*:refs/remotes/origin/*"], log, environment, progress)
        if not has_commit():
            raise JobError(f"{url} has no commit {commit} on any branch", None, log)
        destination.mkdir()
        packed = destination.with_name(f"{destination.name}.tar")
        try:
            self.command(
                [git, "--git-dir", str(repository), "archive", "--format=tar", f"--output={packed}", commit],
                log,
                environment,
            )
            destination.rmdir()
            _build_source.unpack(packed, destination)
        finally:
            if packed.exists():
                packed.unlink()

    def _archive(self, source: dict[str, Any], destination: Path) -> None:
        kept = self.root / "downloads" / source["identity"]
        if not kept.is_file():
            if not source["url"]:
                raise JobError(f"the archive {source['path']} was not brought to the builder: {kept} is missing")
            self._download(source["url"], source["identity"], kept)
        found = _build_source.sha256_file(kept)
        if found != source["identity"]:
            kept.unlink()
            raise JobError(f"{kept} has the sha256 {found}, and llama_build_source says {source['identity']}")
        self.say(message="unpacking")
        _build_source.unpack(kept, destination)
        kept.unlink()

    def _download(self, url: str, sha256: str, destination: Path) -> None:
        """Get a file, going on where an interrupted download stopped."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(f"{destination.name}.partial")
        have = partial.stat().st_size if partial.exists() else 0
        request = urllib.request.Request(url, headers={"User-Agent": "llamafleet.turboquant"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            # The job runs by itself on the host, without Ansible's own open_url.
            with urllib.request.build_opener().open(request, timeout=60) as answer:
                # A server that does not know ranges sends the whole file again, with status 200.
                resumed = getattr(answer, "status", 200) == 206
                have = have if resumed else 0
                length = answer.headers.get("Content-Length")
                total = have + int(length) if length else 0
                with partial.open("ab" if resumed else "wb") as out:
                    for block in iter(lambda: answer.read(1024 * 1024), b""):
                        out.write(block)
                        have += len(block)
                        self.say(done=have, total=total, message="bytes")
        except urllib.error.HTTPError as exc:
            if exc.code == 416 and have:
                # Nothing is left to get, or the file has changed: the digest below decides.
                pass
            else:
                raise JobError(f"{url} answers {exc.code} {exc.reason}") from exc
        except (urllib.error.URLError, OSError) as exc:
            raise JobError(f"{url} cannot be fetched: {exc}; the next run goes on after {have} bytes") from exc
        found = _build_source.sha256_file(partial)
        if found != sha256:
            partial.unlink()
            raise JobError(f"{url} has the sha256 {found}, and llama_build_source says {sha256}")
        partial.replace(destination)

    def _directory(self, source: dict[str, Any], destination: Path) -> None:
        _build_source.copy_directory(Path(source["path"]), destination)
        found = _build_source.digest_directory(destination)
        if found != source["identity"]:
            shutil.rmtree(destination)
            raise JobError(f"{source['path']} changed while it was copied: run again when nobody writes to it")

    def environment(self) -> dict[str, str]:
        """Return the environment of CMake, the compilers and ccache."""
        made = build_environment(self.job["environment"], dict(os.environ))
        if self.job["ccache"]:
            made.update(
                CCACHE_DIR=self.job["ccache_dir"],
                # Folders are named after fingerprints: without these two no file would be found again.
                CCACHE_BASEDIR=str(self.root),
                CCACHE_NOHASHDIR="1",
            )
        return made

    def configure(self, root: Path) -> dict[str, str]:
        """Run CMake, and see in its cache that it took every option as meant."""
        self.say("configure")
        declared: set[str] = set()
        for path in (*root.rglob("CMakeLists.txt"), *root.rglob("*.cmake")):
            declared.update(_build_plan.declared_options(path.read_text(encoding="utf-8", errors="replace")))
        options = _build_plan.for_tree(self.job["options"], self.job["optional"], declared)
        build = self.work / "build"
        argv = [self.job["programs"]["cmake"], "-S", str(root), "-B", str(build), "-G", "Ninja"]
        argv.append(f"-DCMAKE_MAKE_PROGRAM={self.job['programs']['ninja']}")
        maps = source_name_maps(root, build)
        languages = ["C", "CXX", *(name for name in ("CUDA", "HIP") if options.get(f"GGML_{name}") == "ON")]
        for language in languages:
            # nvcc gives the preprocessing of both sides to the host compiler.
            ours = [f"-Xcompiler={item}" for item in maps] if language == "CUDA" else maps
            flags = " ".join([options.pop(f"CMAKE_{language}_FLAGS", ""), *ours]).strip()
            argv.append(f"-DCMAKE_{language}_FLAGS={flags}")
        if self.job["ccache"]:
            # Not HIP: its compiler links device libraries into every object, and ccache does not look at those.
            argv.extend(
                f"-DCMAKE_{language}_COMPILER_LAUNCHER={self.job['ccache']}"
                for language in languages
                if language != "HIP"
            )
        argv.extend(f"-D{name}={value}" for name, value in options.items())
        log = self.logs / "configure.log"
        if log.exists():
            log.unlink()
        try:
            self.command(argv, log, self.environment())
            self._check_cache(build / "CMakeCache.txt", options)
        except JobError:
            # What CMake did not find it would not look for again: the next run begins anew.
            shutil.rmtree(build, ignore_errors=True)
            raise
        return options

    def _check_cache(self, path: Path, passed: dict[str, str]) -> None:
        cache = read_cache(path.read_text(encoding="utf-8", errors="replace"))
        for name, value in passed.items():
            kind, found = cache.get(name, ("", ""))
            ours = name in self.job["asked"]
            if name.startswith("CMAKE_") or name in ("LLAMA_BUILD_NUMBER", "LLAMA_BUILD_COMMIT"):
                continue
            if kind in ("", "UNINITIALIZED") and (ours or (name.startswith("GGML_") and value == "ON")):
                raise JobError(
                    f"this source does not know the option {name}, which was to be {value}: "
                    + ("take it out of llama_build_cmake_options" if ours else "take a source that has it"),
                    None,
                    self.logs / "configure.log",
                )
            if name.startswith(("GGML_", "LLAMA_")) and found != value and kind != "":
                raise JobError(f"CMake turned {name}={value} into {found}", None, self.logs / "configure.log")
        if passed.get("LLAMA_OPENSSL") == "ON" and "NOTFOUND" in cache.get("OPENSSL_SSL_LIBRARY", ("", "NOTFOUND"))[1]:
            raise JobError(
                "CMake found no OpenSSL, so llama-server would have no TLS: install openssl-devel, or set "
                "llama_build_tls to never",
                None,
                self.logs / "configure.log",
            )

    def compile(self) -> None:
        """Build the targets; what an interrupted build finished is not built again."""
        self.say("compile")

        def progress(line: str) -> None:
            match = _PROGRESS.match(line)
            if match is not None:
                self.say(done=int(match.group(1)), total=int(match.group(2)))

        log = self.logs / "compile.log"
        if log.exists():
            log.unlink()
        # Builds of several kinds begin in one task and compile at about the same time, so by now they can be counted.
        beside = sum(held(work) for work in (self.root / "work").iterdir() if work != self.work)
        memory = memory_available_mib(Path("/proc/meminfo").read_text(encoding="ascii"))
        jobs = files_at_once(self.job["jobs"], len(os.sched_getaffinity(0)), memory, 1 + beside)
        argv = [self.job["programs"]["ninja"], "-C", str(self.work / "build"), "-j", str(jobs)]
        self.command([*argv, *self.job["targets"]], log, self.environment(), progress)

    def stage(self, root: Path) -> Path:
        """Put the programs, and the libraries that they need, into the layout of a release."""
        self.say("stage")
        made = self.work / "build" / "bin"
        stage = self.work / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        (stage / "bin").mkdir(parents=True)
        (stage / "lib").mkdir()
        offered = {}
        for path in made.glob("*.so*"):
            if path.is_file() and not path.is_symlink():
                offered[_elf.read(path).soname or path.name] = path
        staged: set[str] = set()

        def bring_needed(binary: Path) -> None:
            for name in _elf.read(binary).needed:
                if name in offered and name not in staged:
                    staged.add(name)
                    shutil.copy2(offered[name], stage / "lib" / name)
                    bring_needed(offered[name])

        for name in self.job["targets"]:
            program = made / name
            if not program.is_file():
                raise JobError(f"the target {name} was built, and there is no program {program}")
            shutil.copy2(program, stage / "bin" / name)
            bring_needed(program)
        if self.job["options"].get("GGML_BACKEND_DL") == "ON":
            # Backends that are loaded at run time are looked for beside the program.
            for module in sorted(made.glob("libggml-*.so")):
                if (_elf.read(module).soname or module.name) not in staged:
                    shutil.copy2(module, stage / "bin" / module.name)
                    bring_needed(module)
        for licence in sorted(root.glob("LICENSE*")):
            if licence.is_file():
                shutil.copy2(licence, stage / licence.name)
        for path in stage.rglob("*"):
            if path.is_file():
                path.chmod(0o755 if path.parent.name in ("bin", "lib") else 0o644)
        self._check_stage(stage)
        return stage

    def _check_stage(self, stage: Path) -> None:
        """See that the staged programs find every library, and none of them in the build folder."""
        for name in self.job["targets"]:
            missing, stray = linked_libraries(stage / "bin" / name, self.work / "build")
            # The driver brings it, and a builder needs no GPU.
            missing = [item for item in missing if item != "libcuda.so.1"]
            if missing or stray:
                raise JobError(
                    f"{name} does not run outside the build folder: "
                    + "; ".join(
                        [f"{item} is not found" for item in missing] + [f"{item} is used from there" for item in stray]
                    )
                )

    def pack(self, stage: Path, options: dict[str, str]) -> None:
        """Write the artifact."""
        self.say("pack")
        requirements = _artifact.library_requirements(stage, self.job["run_path"])
        architecture = requirements.pop("architecture")
        requirements["cpu_flags"] = self.job["cpu_flags"]
        manifest = {
            "format": _artifact.FORMAT,
            "fingerprint": self.fingerprint,
            **self.job["manifest"],
            "options": options,
            "architecture": architecture,
            "requirements": requirements,
            "built": {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - self.started, 1),
            },
            "files": _artifact.list_files(stage),
        }
        _artifact.pack(stage, manifest, self.artifact)


def files_at_once(wanted: int, processors: int, memory_mib: int, builds: int) -> int:
    """Return how many files to compile at once where several builds share a builder: one compiler takes up to 2 GiB."""
    return wanted if wanted > 0 else max(1, min(processors // builds, memory_mib // (2048 * builds)))


def memory_available_mib(meminfo: str) -> int:
    """Return MemAvailable of /proc/meminfo."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(match.group(1)) // 1024 if match is not None else 2048


def linked_libraries(program: Path, build: Path) -> tuple[list[str], list[str]]:
    """Ask the loader which libraries a program gets: those not found, and those from the build folder."""
    answer = subprocess.run(
        ["ldd", str(program)],
        env={"PATH": STANDARD_PATH, "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    ).stdout.decode("utf-8", "replace")
    missing = re.findall(r"^\s*(\S+) => not found", answer, re.MULTILINE)
    stray = [path for path in re.findall(r"=> (/\S+)", answer) if path.startswith(f"{build}/")]
    return sorted(set(missing)), sorted(set(stray))


def read_cache(text: str) -> dict[str, tuple[str, str]]:
    """Return type and value of every entry of a CMakeCache.txt."""
    entries = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z_][A-Za-z0-9_.+-]*):([A-Z]+)=(.*)$", line)
        if match is not None:
            entries[match.group(1)] = (match.group(2), match.group(3))
    return entries


_LIBC = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    # PR_SET_PDEATHSIG: when this job is killed, ninja is told to stop and tells its compilers.
    _LIBC.prctl(1, signal.SIGTERM)


def try_lock(descriptor: int) -> bool:
    """Take a lock if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def held(work: Path) -> bool:
    """Say whether a builder, or a compiler that one has left, is at work in this folder."""
    try:
        descriptor = os.open(work / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that two who look do not take each other for a builder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def alive(work: Path) -> bool:
    """Say whether a builder works in this folder."""
    pid = read_pid(work)
    return pid is not None and Path("/proc", str(pid)).exists() and held(work)


def _take_lock(job: Job) -> bool:
    """Take the lock of this fingerprint; False where another builder is alive and at work."""
    job.lock_fd = os.open(job.work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    limit = time.monotonic() + ORPHANS
    while not try_lock(job.lock_fd):
        pid = read_pid(job.work)
        if pid is not None and Path("/proc", str(pid)).exists():
            return False
        # The builder is gone, and its last compilers are ending.
        if time.monotonic() > limit:
            return False
        time.sleep(0.2)
    return True


def read_pid(work: Path) -> int | None:
    """Return the process of the builder that wrote the status of this folder."""
    try:
        return int(json.loads((work / "status.json").read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def main(path: str) -> int:
    """Run the job that a file describes."""
    job = Job(json.loads(Path(path).read_text(encoding="utf-8")))
    job.work.mkdir(parents=True, exist_ok=True)
    if not _take_lock(job):
        return ALREADY_RUNNING

    def stopped(number: int, _frame: Any) -> None:
        raise JobError(f"the builder was stopped by signal {number}; the next run goes on from here")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ended = threading.Event()
    beat = threading.Thread(target=job._beat, args=(ended,), daemon=True)
    job.say()
    beat.start()
    failure: dict[str, Any] | None = None
    try:
        job.run()
    except JobError as exc:
        failure = {"error": str(exc), "rc": exc.rc}
        if exc.log is not None:
            # What a command said is worth showing where the command failed, and not where its result was judged.
            failure.update(log=str(exc.log), tail=tail(exc.log) if exc.rc is not None else [])
    except (ValueError, OSError) as exc:
        failure = {"error": str(exc), "rc": None}
    except BaseException:
        # Nothing may end without a word: the play would wait for it.
        failure = {"error": traceback.format_exc(), "rc": None}
    finally:
        job.stop_child()
        ended.set()
        beat.join()
    if failure is not None:
        job.say(finished=True, failed=True, **failure)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
