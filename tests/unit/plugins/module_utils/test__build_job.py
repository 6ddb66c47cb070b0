# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job is run as the process that it is, with a CMake and a Ninja that do what a test wants."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import (
    _artifact,
    _build_job,
    _build_plan,
    _build_source,
)
from ansible_collections.llamafleet.turboquant.tests.unit.plugins.module_utils.elf_maker import make_elf

FP = "0123456789abcdef0123456789abcdef"
COLLECTIONS = Path(_build_job.__file__).resolve().parents[5]

# CMake: writes down its arguments and environment, and the cache that they make.
CMAKE = """#!/bin/sh
echo run >> "$FAKE/cmake-runs"
env > "$FAKE/cmake-env"
build=
while [ $# -gt 0 ]; do
    case "$1" in
        -B) build=$2; shift ;;
        -D*) echo "$1" >> "$FAKE/cmake-args" ;;
    esac
    shift
done
mkdir -p "$build/bin"
cat "$FAKE/cache" > "$build/CMakeCache.txt"
if [ -f "$FAKE/cmake-fails" ]; then echo "CMake Error: no compiler"; exit 1; fi
"""

# Ninja: three steps, of which it remembers the finished ones as the real one does.
NINJA = """#!/bin/sh
build=$2
echo run >> "$FAKE/ninja-runs"
for step in 1 2 3; do
    if [ -f "$FAKE/ninja-waits-at-$step" ]; then
        echo $$ > "$FAKE/ninja-pid"
        while [ -f "$FAKE/ninja-waits-at-$step" ]; do sleep 0.05; done
    fi
    if [ -f "$FAKE/ninja-fails-at-$step" ]; then
        i=0; while [ $i -lt 60 ]; do echo "error line $i"; i=$((i + 1)); done
        echo "[$step/3] Building CXX object other.o"
        exit 7
    fi
    [ -f "$build/step-$step" ] || echo "$step" >> "$FAKE/compiled"
    touch "$build/step-$step"
    echo "[$step/3] Building CXX object $step.o"
done
cp "$FAKE/program" "$build/bin/llama-server"
"""

CACHE = """GGML_NATIVE:BOOL=OFF
GGML_AVX2:BOOL=ON
LLAMA_BUILD_TESTS:BOOL=OFF
LLAMA_BUILD_NUMBER:UNINITIALIZED=7
"""


class Bench:
    """A builder's folder, and the programs that the job runs."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.fake = top / "fake"
        self.root = top / "build"
        self.fake.mkdir()
        for name, text in (("cmake", CMAKE), ("ninja", NINJA)):
            (self.fake / name).write_text(text, encoding="utf-8")
            (self.fake / name).chmod(0o755)
        (self.fake / "cache").write_text(CACHE, encoding="utf-8")
        shutil.copy(Path(shutil.which("true")).resolve(), self.fake / "program")
        tree = top / "tree"
        tree.mkdir()
        (tree / "CMakeLists.txt").write_text(
            'project("llama.cpp" C CXX)\noption(LLAMA_BUILD_TESTS "x" ON)\noption(GGML_AVX2 "x" ON)\n', encoding="utf-8"
        )
        (tree / "LICENSE").write_text("MIT\n", encoding="utf-8")
        self.work = self.root / "work" / FP
        self.job = {
            "fingerprint": FP,
            "directory": str(self.root),
            "source": {
                "kind": "directory",
                "identity": _build_source.digest_directory(tree),
                "url": "",
                "path": str(tree),
                "subdir": "",
                "commit": "abc",
                "number": 7,
            },
            "options": {"GGML_NATIVE": "OFF", "GGML_AVX2": "ON", "GGML_HIP": "OFF", "LLAMA_BUILD_NUMBER": "7"},
            "optional": {"LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_UI": "OFF"},
            "asked": [],
            "targets": ["llama-server"],
            "cpu_flags": ["avx2"],
            "environment": {"FAKE": str(self.fake)},
            "run_path": [],
            "programs": {
                "cmake": str(self.fake / "cmake"),
                "ninja": str(self.fake / "ninja"),
                "git": shutil.which("git") or "",
                "ccache": "",
            },
            "ccache": "",
            "ccache_dir": "",
            "jobs": 2,
            "manifest": {
                "source": {"kind": "directory"},
                "commit": "abc",
                "build_number": 7,
                "backends": ["cpu"],
                "compilers": {},
                "cmake": "4.1.0",
                "distribution": {"id": "fedora", "version": "44"},
            },
        }

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        self.work.mkdir(parents=True, exist_ok=True)
        (self.top / "job.json").write_text(json.dumps(self.job), encoding="utf-8")
        code = (
            f"import sys; sys.path.insert(0, {str(COLLECTIONS)!r}); "
            "from ansible_collections.llamafleet.turboquant.plugins.module_utils import _build_job as job; "
            "job.HEARTBEAT = 0.2; job.ORPHANS = 10.0; "
            "job.memory_available_mib = lambda _text: 65536; job.os.sched_getaffinity = lambda _pid: range(8); "
            "sys.exit(job.main(sys.argv[1]))"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, str(self.top / "job.json")],
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def run(self, **environment: str) -> int:
        return self.start(**environment).wait(60)

    def status(self):
        return json.loads((self.work / "status.json").read_text(encoding="utf-8"))

    def until(self, condition) -> None:
        limit = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < limit, self.status()
            time.sleep(0.02)

    def phase(self, name: str):
        return lambda: (self.work / "status.json").exists() and self.status()["phase"] == name

    def maps(self) -> list[str]:
        """The flags that give a source its name, by its path and by the one that ccache makes of it."""
        tree = f"sources/directory-{self.job['source']['identity']}"
        return [f"-ffile-prefix-map={top}/{tree}=llama.cpp" for top in (self.root, "../../..")]

    def count(self, name: str) -> int:
        path = self.fake / name
        return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0

    @property
    def artifact(self) -> Path:
        return self.root / "artifacts" / f"{FP}.tar.gz"


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_from_source_to_artifact(bench):
    assert bench.run() == 0
    status = bench.status()
    assert (status["phase"], status["finished"], status["failed"]) == ("done", True, False)
    manifest = _artifact.verify(bench.artifact, FP)
    assert status["sha256"] == _artifact.sha256_file(bench.artifact)
    assert sorted(manifest["files"]) == ["LICENSE", "bin/llama-server"]
    # What the tree declares is passed, what it does not is left out, and what the recipe needs is passed anyway.
    assert manifest["options"] == {
        "GGML_AVX2": "ON",
        "GGML_HIP": "OFF",
        "GGML_NATIVE": "OFF",
        "LLAMA_BUILD_NUMBER": "7",
        "LLAMA_BUILD_TESTS": "OFF",
    }
    assert manifest["requirements"]["cpu_flags"] == ["avx2"]
    assert "libc.so.6" in manifest["requirements"]["libraries"]
    # The logs stay, the build folder and the staged files go.
    assert sorted(path.name for path in bench.work.iterdir()) == ["lock", "log", "status.json"]


def test_the_same_is_not_built_twice(bench):
    assert bench.run() == 0
    assert bench.run() == 0
    assert bench.status()["finished"]
    assert (bench.count("cmake-runs"), bench.count("ninja-runs")) == (1, 1)


def test_a_source_is_got_once_for_two_builds(bench):
    assert bench.run() == 0
    shutil.rmtree(bench.top / "tree")
    other = "f" * 32
    bench.job["fingerprint"] = other
    bench.work = bench.root / "work" / other
    assert bench.run() == 0
    assert sorted(path.name for path in (bench.root / "artifacts").iterdir()) == [f"{FP}.tar.gz", f"{other}.tar.gz"]


POISON = {
    "CC": "/bin/false",
    "CXX": "/bin/false",
    "CFLAGS": "-march=native",
    "CXXFLAGS": "-march=native",
    "LDFLAGS": "-static",
    "CUDAHOSTCXX": "/bin/false",
    "NVCC_CCBIN": "/bin/false",
    "NVCC_PREPEND_FLAGS": "-ccbin /bin/false",
    "NVCC_APPEND_FLAGS": "-ccbin /bin/false",
    "CUDAARCHS": "50",
    "CMAKE_GENERATOR": "Unix Makefiles",
    "LD_LIBRARY_PATH": "/tmp",
    "GIT_DIR": "/tmp",
}


def test_the_environment_of_the_login_has_no_say(bench):
    assert bench.run(**POISON, https_proxy="http://proxy.example.org:3128") == 0
    lines = (bench.fake / "cmake-env").read_text(encoding="utf-8").splitlines()
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert not set(POISON) & set(seen)
    assert seen["https_proxy"] == "http://proxy.example.org:3128"
    assert seen["SOURCE_DATE_EPOCH"] == str(_artifact.EPOCH)
    assert seen["PATH"] == _build_job.STANDARD_PATH


def test_names_of_sources_and_ccache(bench):
    bench.job.update(ccache="/usr/bin/ccache", ccache_dir="/var/cache/ccache")
    bench.job["options"]["CMAKE_CXX_FLAGS"] = "-g1"
    assert bench.run() == 0
    arguments = (bench.fake / "cmake-args").read_text(encoding="utf-8").splitlines()
    maps = bench.maps()
    assert f"-DCMAKE_CXX_FLAGS=-g1 {' '.join(maps)}" in arguments
    assert f"-DCMAKE_C_FLAGS={' '.join(maps)}" in arguments
    assert "-DCMAKE_CXX_COMPILER_LAUNCHER=/usr/bin/ccache" in arguments
    assert [item for item in arguments if item.startswith(("-DCMAKE_CUDA", "-DCMAKE_HIP"))] == []
    environment = (bench.fake / "cmake-env").read_text(encoding="utf-8")
    assert "CCACHE_DIR=/var/cache/ccache" in environment
    assert f"CCACHE_BASEDIR={bench.root}" in environment


@pytest.mark.parametrize(
    ("language", "before", "launched"), [("CUDA", "-Xcompiler=", True), ("HIP", "", False)], ids=["CUDA", "HIP"]
)
def test_kernels_name_their_sources_alike(bench, language, before, launched):
    bench.job.update(ccache="/usr/bin/ccache", ccache_dir="/var/cache/ccache")
    bench.job["options"].update({f"GGML_{language}": "ON", f"CMAKE_{language}_FLAGS": "-O2"})
    (bench.fake / "cache").write_text(f"{CACHE}GGML_{language}:BOOL=ON\n", encoding="utf-8")
    assert bench.run() == 0
    arguments = (bench.fake / "cmake-args").read_text(encoding="utf-8").splitlines()
    maps = " ".join(f"{before}{item}" for item in bench.maps())
    assert f"-DCMAKE_{language}_FLAGS=-O2 {maps}" in arguments
    assert (f"-DCMAKE_{language}_COMPILER_LAUNCHER=/usr/bin/ccache" in arguments) is launched


# Failing


def test_a_failing_compile_shows_the_last_40_lines(bench):
    (bench.fake / "ninja-fails-at-2").touch()
    assert bench.run() == 1
    status = bench.status()
    assert (status["phase"], status["rc"]) == ("compile", 7)
    assert status["error"] == "ninja ended with exit code 7"
    # 60 lines of errors, without the progress line of another file that came after them.
    assert status["tail"] == [f"error line {number}" for number in range(20, 60)]
    assert Path(status["log"]).read_text(encoding="utf-8").count("error line") == 60
    assert not bench.artifact.exists()
    # The cause is gone: the next run goes on.
    (bench.fake / "ninja-fails-at-2").unlink()
    assert bench.run() == 0
    assert (bench.fake / "compiled").read_text(encoding="utf-8").split() == ["1", "2", "3"]


def test_a_failing_configure_is_begun_anew(bench):
    (bench.fake / "cmake-fails").touch()
    assert bench.run() == 1
    status = bench.status()
    assert (status["phase"], status["rc"]) == ("configure", 1)
    assert status["tail"][-1] == "CMake Error: no compiler"
    assert not (bench.work / "build").exists()
    (bench.fake / "cmake-fails").unlink()
    assert bench.run() == 0


@pytest.mark.parametrize(
    ("options", "asked", "cache", "said"),
    [
        ({"GGML_VULKAN": "ON"}, [], "GGML_VULKAN:UNINITIALIZED=ON\n", "does not know the option GGML_VULKAN"),
        ({"GGML_FOO": "1"}, ["GGML_FOO"], "GGML_FOO:UNINITIALIZED=1\n", "take it out of llama_build_cmake_options"),
        ({"SOME_FOO": "1"}, ["SOME_FOO"], "", "does not know the option SOME_FOO"),
        ({"GGML_CUDA_FA": "ON"}, [], "GGML_CUDA_FA:BOOL=OFF\n", "CMake turned GGML_CUDA_FA=ON into OFF"),
        (
            {"LLAMA_OPENSSL": "ON"},
            [],
            "LLAMA_OPENSSL:BOOL=ON\nOPENSSL_SSL_LIBRARY:FILEPATH=OPENSSL_SSL_LIBRARY-NOTFOUND\n",
            "CMake found no OpenSSL",
        ),
        ({"LLAMA_OPENSSL": "ON"}, [], "LLAMA_OPENSSL:BOOL=ON\n", "CMake found no OpenSSL"),
    ],
)
def test_an_option_that_did_not_take_effect_is_refused(bench, options, asked, cache, said):
    bench.job["options"].update(options)
    bench.job["asked"] = asked
    (bench.fake / "cache").write_text(CACHE + cache, encoding="utf-8")
    assert bench.run() == 1
    assert said in bench.status()["error"]
    assert bench.status()["log"].endswith("configure.log")
    assert bench.count("ninja-runs") == 0


def test_an_option_that_took_effect(bench):
    bench.job["options"].update(LLAMA_OPENSSL="ON", GGML_VULKAN="ON", SOME_FOO="1")
    bench.job["asked"] = ["SOME_FOO"]
    taken = "LLAMA_OPENSSL:BOOL=ON\nOPENSSL_SSL_LIBRARY:FILEPATH=/usr/lib64/libssl.so\nGGML_VULKAN:BOOL=ON\n"
    (bench.fake / "cache").write_text(CACHE + taken + "SOME_FOO:STRING=1\n", encoding="utf-8")
    assert bench.run() == 0


def test_a_program_that_needs_a_library_of_the_build_folder_only(bench):
    """A run path into the build folder is what `cmake --install` is for; here it must be refused."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine; molecule's builds look at the same thing with a real one")
    (bench.top / "one.c").write_text("int one(void) { return 1; }\n", encoding="utf-8")
    (bench.top / "main.c").write_text("int one(void); int main(void) { return one() - 1; }\n", encoding="utf-8")
    made = bench.work / "build/bin"
    made.mkdir(parents=True)
    subprocess.run([compiler, "-shared", "-o", made / "libone.so", bench.top / "one.c"], check=True)
    subprocess.run(
        [compiler, "-o", bench.fake / "program", bench.top / "main.c", f"-L{made}", "-lone", f"-Wl,-rpath,{made}"],
        check=True,
    )
    assert bench.run() == 1
    assert "does not run outside the build folder" in bench.status()["error"]
    assert f"{made}/libone.so is used from there" in bench.status()["error"]
    assert not bench.artifact.exists()


def test_a_run_path_of_the_toolchain_is_packed(bench):
    (bench.fake / "program").write_bytes(make_elf(run_path="$ORIGIN/../lib:/srv/conda/lib"))
    assert bench.run() == 1
    assert "llama-server looks for its libraries in /srv/conda/lib" in bench.status()["error"]
    bench.job["run_path"] = ["/srv/conda/lib"]
    assert bench.run() == 0, bench.status()
    assert _artifact.read_manifest(bench.artifact)["requirements"]["run_path"] == ["/srv/conda/lib"]


# Sources


def archive_of(bench, path: Path) -> str:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(bench.top / "tree", "pkg-1.0/llama.cpp")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; with ranges where `ranges` is set."""

    ranges = True
    asked: ClassVar[list[str]] = []

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        type(self).asked.append(self.headers.get("Range", ""))
        path = Path(self.directory) / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        begin = int(self.headers["Range"][6:-1]) if self.ranges and "Range" in self.headers else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin:])


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(request, tmp_path):
    (tmp_path / "www").mkdir()
    handler = type("Handler", (Quiet,), {"ranges": request.param, "asked": []})
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=tmp_path / "www"))
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found, handler, tmp_path / "www"
    found.shutdown()
    found.server_close()


def test_an_archive_is_fetched_and_an_interrupted_download_goes_on(bench, server):
    found, handler, folder = server
    sha256 = archive_of(bench, folder / "a.tar.gz")
    url = f"http://127.0.0.1:{found.server_address[1]}/a.tar.gz"
    bench.job["source"].update(kind="archive", identity=sha256, url=url, path="")
    partial = bench.root / "downloads" / f"{sha256}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes((folder / "a.tar.gz").read_bytes()[:100])
    assert bench.run(no_proxy="127.0.0.1") == 0, bench.status()
    assert handler.asked == ["bytes=100-"]
    assert list((bench.root / "downloads").iterdir()) == []


def test_a_wrong_digest_is_refused_and_the_file_removed(bench, server):
    found, _handler, folder = server
    real = archive_of(bench, folder / "a.tar.gz")
    wanted = "0" * 64
    bench.job["source"].update(
        kind="archive", identity=wanted, url=f"http://127.0.0.1:{found.server_address[1]}/a.tar.gz", path=""
    )
    assert bench.run(no_proxy="127.0.0.1") == 1
    assert f"has the sha256 {real}, and llama_build_source says {wanted}" in bench.status()["error"]
    assert list((bench.root / "downloads").iterdir()) == []
    assert list((bench.root / "sources").iterdir()) == []


def test_an_address_that_is_not_there(bench, server):
    found, _handler, _folder = server
    bench.job["source"].update(
        kind="archive", identity="0" * 64, url=f"http://127.0.0.1:{found.server_address[1]}/none", path=""
    )
    assert bench.run(no_proxy="127.0.0.1") == 1
    assert "/none answers 404" in bench.status()["error"]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, check=True, text=True
    ).stdout.strip()


def test_a_commit_that_is_no_tip_is_got_from_git(bench):
    tree = bench.top / "tree"
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "one")
    commit = git(tree, "rev-parse", "HEAD")
    (tree / "later").write_text("x", encoding="utf-8")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "two")
    bench.job["source"].update(kind="git", identity=commit, url=f"file://{tree}", path="")
    assert bench.run() == 0, bench.status()
    got = bench.root / "sources" / f"git-{commit}"
    assert (got / "CMakeLists.txt").is_file()
    # Neither what came later nor git's own data: CMake would ask git for the version.
    assert not (got / "later").exists()
    assert not (got / ".git").exists()


@pytest.mark.parametrize("address", ["file://{}", "{}"])
def test_a_commit_is_got_from_a_repository_of_another_user(bench, address):
    tree = bench.top / "tree"
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "one")
    commit = git(tree, "rev-parse", "HEAD")
    if os.geteuid() == 0:
        for path in (tree, *tree.rglob("*")):
            os.chown(path, 65534, 65534)
    else:
        # What git has for its own tests. In front of the program, because the job's environment is made anew.
        program = bench.fake / "git"
        program.write_text(
            f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {shutil.which("git")} "$@"\n', encoding="utf-8"
        )
        program.chmod(0o755)
        bench.job["programs"]["git"] = str(program)
    bench.job["source"].update(kind="git", identity=commit, url=address.format(tree), path="")
    assert bench.run() == 0, bench.status()
    assert (bench.root / "sources" / f"git-{commit}" / "CMakeLists.txt").is_file()


def test_a_commit_that_git_does_not_have(bench):
    tree = bench.top / "tree"
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "one")
    bench.job["source"].update(kind="git", identity="0" * 40, url=f"file://{tree}", path="")
    assert bench.run() == 1
    assert f"has no commit {'0' * 40} on any branch" in bench.status()["error"]
    bench.job["source"].update(url=f"file://{bench.top}/nothing")
    assert bench.run() == 1
    assert bench.status()["log"].endswith("source.log")
    assert any("nothing" in line for line in bench.status()["tail"])


def test_what_a_killed_build_left_of_a_source_is_no_obstacle(bench):
    left = bench.root / "sources" / f".directory-{bench.job['source']['identity']}-77"
    left.mkdir(parents=True)
    left.with_name(f"{left.name}.tar").touch()
    assert bench.run() == 0, bench.status()
    assert [path.name for path in left.parent.iterdir()] == [left.name[1:].rpartition("-")[0]]


def test_a_folder_that_changed_meanwhile(bench):
    (bench.top / "tree/new").write_text("x", encoding="utf-8")
    assert bench.run() == 1
    assert "changed while it was copied" in bench.status()["error"]
    assert [path.name for path in (bench.root / "sources").iterdir()] == []


# Two at once, and killed ones


def test_two_at_once_build_once(bench):
    (bench.fake / "ninja-waits-at-2").touch()
    first = bench.start()
    bench.until(lambda: (bench.fake / "ninja-pid").exists())
    assert bench.run() == _build_job.ALREADY_RUNNING
    (bench.fake / "ninja-waits-at-2").unlink()
    assert first.wait(30) == 0
    assert (bench.count("cmake-runs"), bench.count("ninja-runs")) == (1, 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_goes_on_where_it_was(bench, number):
    (bench.fake / "ninja-waits-at-3").touch()
    first = bench.start()
    bench.until(lambda: (bench.fake / "ninja-pid").exists())
    ninja = int((bench.fake / "ninja-pid").read_text(encoding="utf-8"))
    first.send_signal(number)
    assert first.wait(30) != 0
    assert not bench.artifact.exists()
    if number == signal.SIGTERM:
        assert "stopped by signal 15" in bench.status()["error"]
    # Nothing compiles on behind the back of the next builder.
    bench.until(lambda: not Path("/proc", str(ninja)).exists())
    (bench.fake / "ninja-waits-at-3").unlink()
    assert bench.run() == 0
    _artifact.verify(bench.artifact, FP)
    assert (bench.fake / "compiled").read_text(encoding="utf-8").split() == ["1", "2", "3"]


def test_an_orphaned_compiler_is_waited_for(bench):
    """The lock is held by every child, so the next builder does not enter while one lives."""
    bench.work.mkdir(parents=True)
    holder = subprocess.Popen(["flock", str(bench.work / "lock"), "sleep", "1.5"])
    bench.until(lambda: (bench.work / "lock").exists())
    time.sleep(0.2)
    begun = time.monotonic()
    assert bench.run() == 0
    assert time.monotonic() - begun > 1.0
    holder.wait()


def test_no_artifact_is_visible_before_it_is_whole(bench):
    (bench.fake / "ninja-waits-at-1").touch()
    first = bench.start()
    bench.until(lambda: (bench.fake / "ninja-pid").exists())
    assert not bench.artifact.exists()
    (bench.fake / "ninja-waits-at-1").unlink()
    while first.poll() is None:
        if bench.artifact.exists():
            _artifact.verify(bench.artifact, FP)
        time.sleep(0.005)
    assert first.returncode == 0


def test_the_status_beats_while_nothing_happens(bench):
    (bench.fake / "ninja-waits-at-1").touch()
    first = bench.start()
    bench.until(bench.phase("compile"))
    before = bench.status()["updated"]
    bench.until(lambda: bench.status()["updated"] > before + 0.3)
    (bench.fake / "ninja-waits-at-1").unlink()
    assert first.wait(30) == 0


@pytest.mark.parametrize(("wanted", "jobs"), [(0, 2), (5, 5)])
def test_builds_side_by_side_share_the_builder(bench, wanted, jobs):
    holders = []
    for name in ("a" * 32, "b" * 32, "c" * 32):
        lock = bench.root / "work" / name / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        holders.append(subprocess.Popen(["flock", str(lock), "sleep", "60"], start_new_session=True))
    # One that has ended takes nothing.
    (bench.root / "work" / ("d" * 32)).mkdir()
    (bench.root / "work" / ("d" * 32) / "lock").touch()
    try:
        bench.until(lambda: all(_build_job.held(bench.root / "work" / (name * 32)) for name in "abc"))
        bench.job["jobs"] = wanted
        assert bench.run() == 0
    finally:
        for holder in holders:
            os.killpg(holder.pid, signal.SIGTERM)
            holder.wait()
    log = (bench.work / "log/compile.log").read_text(encoding="utf-8")
    assert f" -j {jobs} llama-server\n" in log


# Small parts


@pytest.mark.parametrize(
    ("wanted", "processors", "memory", "builds", "expected"),
    [
        (0, 16, 65536, 1, 16),
        (0, 16, 8192, 1, 4),  # 16 compilers would not fit
        (0, 2, 1000, 1, 1),
        (6, 2, 1000, 1, 6),  # said by the user
        (0, 16, 65536, 3, 5),
        (0, 16, 12288, 3, 2),
        (0, 2, 65536, 3, 1),
        (6, 2, 1000, 3, 6),
    ],
)
def test_files_at_once(wanted, processors, memory, builds, expected):
    assert _build_job.files_at_once(wanted, processors, memory, builds) == expected


def test_memory_available():
    assert _build_job.memory_available_mib("MemTotal: 1 kB\nMemAvailable:    8388608 kB\n") == 8192
    assert _build_job.memory_available_mib("") == 2048


def test_tail_leaves_out_progress(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"[{n}/99] Building\nline {n}\n" for n in range(50)), encoding="utf-8")
    assert _build_job.tail(log) == [f"line {n}" for n in range(10, 50)]
    assert _build_job.tail(log, 2) == ["line 48", "line 49"]
    log.write_text(
        "remote: Counting objects: 100% (9/9)\rReceiving objects:  13% (1/9)\rResolving deltas: 1% (1/9)\r"
        "fatal: early EOF\n",
        encoding="utf-8",
    )
    assert _build_job.tail(log) == ["fatal: early EOF"]


def test_read_cache():
    text = "# comment\n//help\nGGML_CUDA:BOOL=ON\nX-Y:STRING=a=b:c\nEMPTY:PATH=\n"
    assert _build_job.read_cache(text) == {
        "GGML_CUDA": ("BOOL", "ON"),
        "X-Y": ("STRING", "a=b:c"),
        "EMPTY": ("PATH", ""),
    }


def test_the_job_stands_alone():
    """It is copied out of the collection: it may import nothing but the standard library and its siblings."""
    for module in (_build_job, _artifact, _build_plan, _build_source):
        text = Path(module.__file__).read_text(encoding="utf-8")
        for line in text.splitlines():
            if line.startswith(("import ", "from ")):
                name = line.split()[1].split(".")[0]
                assert name == "" or name in sys.stdlib_module_names, line
