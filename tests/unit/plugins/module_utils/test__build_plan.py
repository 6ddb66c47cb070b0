# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _build_plan
from hypothesis import given
from hypothesis import strategies as st

COMMIT = "69d8e4be47243e83b3d0d71e932bc7aa61c644dc"
SHA = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
GIT = {"kind": "git", "url": "https://example.org/llama.git", "commit": COMMIT}

HOST = {
    "architecture": "x86_64",
    "distribution": {"id": "fedora", "version": "44"},
    "glibc": "2.43",
    "cmake": "4.1.0",
    "compilers": {"c": {"path": "/usr/bin/gcc", "version": "gcc 16.2.1", "target": "x86_64-redhat-linux"}},
    "environment": {},
}


def request(source=GIT, **more):
    given = {
        "architecture": "x86_64",
        "backends": ["cpu"],
        "targets": ["llama-bench"],
        "cpu_features": ["sse42", "avx2"],
        "arm_arch": "armv8.2-a+dotprod",
        "cuda_architectures": [],
        "gpu_targets": [],
        "cache_type_pairs": [],
        "rocwmma": False,
        "tls": False,
        "cmake_options": {},
        "toolchain_options": {},
        "rpath": [],
        **more,
    }
    return _build_plan.make_request(source=_build_plan.parse_source(source), **given)


def name(host=HOST, **more):
    return _build_plan.fingerprint(_build_plan.fingerprint_inputs(request(**more), host))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("https://example.org", "is a str: it must be a mapping"),
        ({}, "source kind '' is unknown: it must be git, archive or directory"),
        ({"kind": "svn", "url": "x"}, "source kind 'svn' is unknown: it must be git, archive or directory"),
        ({**GIT, "branch": "main"}, "a source of kind git has no branch: it takes commit, number, subdir, url"),
        ({"kind": "git", "commit": COMMIT}, "needs a url"),
        ({**GIT, "url": "--upload-pack=sh"}, "begins with a dash"),
        ({**GIT, "commit": "feature/turboquant-kv-cache"}, "'feature/turboquant-kv-cache' is not a commit id of 40"),
        ({**GIT, "commit": "main"}, r"take the id that `git ls-remote https://example\.org/llama\.git main` prints"),
        ({**GIT, "commit": "b9079"}, "'b9079' is not a commit id of 40 digits"),
        ({**GIT, "commit": COMMIT[:12]}, "is not a commit id of 40 digits"),
        ({**GIT, "commit": COMMIT.upper()}, "is not a commit id of 40 digits"),
        ({"kind": "git", "url": "https://example.org/x"}, "'' is not a commit id"),
        ({**GIT, "number": "b9079"}, "source number 'b9079' must be a whole number"),
        ({**GIT, "number": True}, "source number True must be a whole number"),
        ({**GIT, "subdir": "../x"}, "source subdir '../x' leaves the source"),
        ({**GIT, "subdir": "/x"}, "source subdir '/x' leaves the source"),
        ({"kind": "archive", "sha256": SHA}, r"either a url or a path .* and it has neither"),
        ({"kind": "archive", "sha256": SHA, "url": "https://x/y", "path": "z"}, "and it has both"),
        ({"kind": "archive", "path": "x"}, "source sha256 '' is not a digest of 64 digits"),
        ({"kind": "archive", "path": "x", "sha256": SHA[:-1]}, "is not a digest of 64 digits"),
        ({"kind": "archive", "url": "ftp://x/y", "sha256": SHA}, "must begin with https://, http:// or file://"),
        ({"kind": "archive", "path": "x", "sha256": SHA, "commit": "main"}, "'main' must be 7 to 40 digits"),
        ({"kind": "directory", "path": "src/llama.cpp"}, "must be absolute: it is a folder on the builder"),
        ({"kind": "directory", "path": "/x", "sha256": SHA}, "a source of kind directory has no sha256"),
    ],
)
def test_a_source_that_is_refused(source, said):
    with pytest.raises(_build_plan.BuildError, match=said):
        _build_plan.parse_source(source)


def test_a_source_of_each_kind():
    git = _build_plan.parse_source({**GIT, "number": "9079"})
    assert (git.name, git.commit, git.number) == (f"git-{COMMIT}", "69d8e4be4", 9079)
    assert git.describe() == {"kind": "git", "url": GIT["url"], "commit": COMMIT}
    archive = _build_plan.parse_source({"kind": "archive", "path": "a.tar.gz", "sha256": SHA.upper()})
    assert (archive.name, archive.commit, archive.number) == (f"archive-{SHA}", SHA[:9], 0)
    assert archive.describe() == {"kind": "archive", "path": "a.tar.gz", "sha256": SHA}
    folder = _build_plan.parse_source({"kind": "directory", "path": "/src", "commit": "abcdef0"}, "d" * 64)
    assert (folder.identity, folder.commit) == ("d" * 64, "abcdef0")
    # An empty value is one that a template left out.
    assert _build_plan.parse_source({**GIT, "subdir": "", "number": None}) == _build_plan.parse_source(GIT)


def test_the_source_itself_is_not_changed():
    source = copy.deepcopy(GIT)
    _build_plan.parse_source(source)
    assert source == GIT


@pytest.mark.parametrize("backends", [[], "cpu", None])
def test_no_backends(backends):
    with pytest.raises(_build_plan.BuildError, match="must be a list with at least one backend"):
        _build_plan.check_backends(backends)


def test_backends_and_targets_have_one_order():
    assert _build_plan.check_backends(["vulkan", "cpu", "vulkan"]) == ["cpu", "vulkan"]
    assert _build_plan.check_targets(["llama-bench", "llama-bench"]) == ["llama-bench", "llama-server"]
    with pytest.raises(_build_plan.BuildError, match="backend metal is unknown: cpu, cuda, rocm, vulkan are known"):
        _build_plan.check_backends(["metal"])
    with pytest.raises(_build_plan.BuildError, match=r"target '\.\./x' is no name of a program"):
        _build_plan.check_targets(["../x"])
    with pytest.raises(_build_plan.BuildError, match="target '-k0' is no name of a program"):
        _build_plan.check_targets(["-k0"])


def test_every_instruction_set_is_named():
    options = request(cpu_features=["avx2", "fma"]).options
    assert options["GGML_NATIVE"] == "OFF"
    assert (options["GGML_AVX2"], options["GGML_FMA"]) == ("ON", "ON")
    # What is not wanted is said too: left to its default it would follow the environment.
    assert (options["GGML_AVX512"], options["GGML_AMX_INT8"], options["GGML_SSE42"]) == ("OFF", "OFF", "OFF")
    assert request(cpu_features=["sse42", "avx512"]).cpu_flags == ["sse4_2", "avx512f"]
    with pytest.raises(_build_plan.BuildError, match="instruction set avx3 is unknown"):
        request(cpu_features=["avx3"])


def test_arm_is_named_by_march():
    found = request(architecture="aarch64")
    assert found.options["GGML_CPU_ARM_ARCH"] == "armv8.2-a+dotprod"
    assert "GGML_AVX2" not in found.options
    assert found.cpu_flags == []
    with pytest.raises(_build_plan.BuildError, match="'native' must be a value of -march"):
        request(architecture="aarch64", arm_arch="native")


@pytest.mark.parametrize(
    ("architectures", "said"),
    [
        ([], "llama_build_cuda_architectures is empty"),
        (["native"], "`native` would be the builder's own GPU"),
        (["8.9"], "'8.9' must be a compute capability without the dot"),
        (["all"], "'all' must be a compute capability"),
        (["sm_89"], "'sm_89' must be"),
    ],
)
def test_cuda_architectures_that_are_refused(architectures, said):
    with pytest.raises(_build_plan.BuildError, match=said):
        request(backends=["cuda"], cuda_architectures=architectures)


def test_cuda_options():
    options = request(backends=["cuda"], cuda_architectures=[120, "89", "90a-real", "89"]).options
    assert options["GGML_CUDA"] == "ON"
    assert options["CMAKE_CUDA_ARCHITECTURES"] == "89;90a-real;120"
    assert options["GGML_BACKEND_DL"] == "OFF"


@pytest.mark.parametrize(
    ("targets", "said"),
    [([], "llama_build_gpu_targets is empty"), (["native"], "must be a gfx name"), (["1151"], "gfx")],
)
def test_gpu_targets_that_are_refused(targets, said):
    with pytest.raises(_build_plan.BuildError, match=said):
        request(backends=["rocm"], gpu_targets=targets)


def test_rocm_options():
    found = request(backends=["rocm"], gpu_targets=["gfx1151", "gfx90a:xnack-"])
    assert found.options["GGML_HIP"] == "ON"
    assert found.options["GPU_TARGETS"] == found.options["CMAKE_HIP_ARCHITECTURES"] == "gfx1151;gfx90a:xnack-"
    assert found.optional["GGML_HIP_ROCWMMA_FATTN"] == "OFF"


@pytest.mark.parametrize(
    ("targets", "version", "said"),
    [
        (["gfx1100"], (1, 7, 0), None),
        (["gfx1100", "gfx942"], (2, 0, 0), "wrong results on CDNA"),
        (["gfx1201"], (1, 7, 0), "does not know RDNA4"),
        (["gfx1030"], (2, 1, 0), "no matrix instructions"),
        (["gfx1100"], None, "has no rocWMMA headers"),
    ],
)
def test_rocwmma_only_where_it_is_right(targets, version, said):
    if said is None:
        _build_plan.check_rocwmma(targets, version)
        return
    with pytest.raises(_build_plan.BuildError, match=said):
        _build_plan.check_rocwmma(targets, version)


SEVERAL = {
    "environment": {"CUDAARCHS": "", "ROCM_PATH": "/usr"},
    "cmake_options": {"GGML_CUDA": "ON", "GGML_VULKAN": "ON"},
    "backends": {
        "cpu": {"host_compiler": "/usr/bin/g++", "cmake_options": {}, "environment": {}, "run_path": []},
        "vulkan": {"host_compiler": "/usr/bin/g++", "cmake_options": {"GGML_VULKAN": "ON"}, "run_path": ["/opt/v/lib"]},
        "cuda": {
            "host_compiler": "/usr/bin/g++-15",
            "cmake_options": {"GGML_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": "89"},
            "environment": {"CUDAARCHS": ""},
            "run_path": ["/opt/v/lib", "/opt/c/lib"],
        },
    },
}


# The last two are below /root and /var/tmp, however they are written.
@pytest.mark.parametrize("folder", ["lib", "/home/me/conda/lib", "/srv/../root/lib", "/var/tmp/lib"])
def test_a_run_path_that_no_service_sees_is_refused_before_anything_is_built(folder):
    with pytest.raises(_build_plan.BuildError, match=rf"toolchain_result.run_path names '{folder}'"):
        request(rpath=["/srv/conda/lib", folder])
    found = request(rpath=["/srv/conda/lib", "/homes/lib"]).options["CMAKE_INSTALL_RPATH"]
    assert found == "$ORIGIN/../lib:/srv/conda/lib:/homes/lib"


def test_a_build_takes_of_a_toolchain_what_belongs_to_its_backends():
    vulkan = _build_plan.toolchain_for(SEVERAL, ["cpu", "vulkan"])
    assert vulkan == {
        "environment": {},
        "cmake_options": {"GGML_VULKAN": "ON"},
        "host_compiler": "/usr/bin/g++",
        "run_path": ["/opt/v/lib"],
    }
    assert request(backends=["vulkan"], toolchain_options=vulkan["cmake_options"]).options["GGML_CUDA"] == "OFF"
    both = _build_plan.toolchain_for(SEVERAL, ["cpu", "cuda", "vulkan"])
    assert both["run_path"] == ["/opt/v/lib", "/opt/c/lib"]
    assert both["host_compiler"] == "/usr/bin/g++-15"
    found = request(backends=["cuda", "vulkan"], toolchain_options=both["cmake_options"]).options
    assert (found["GGML_CUDA"], found["GGML_VULKAN"], found["GGML_BACKEND_DL"]) == ("ON", "ON", "ON")
    # One that a person wrote says it without.
    assert _build_plan.toolchain_for({"host_compiler": "g++-14"}, ["cuda"])["host_compiler"] == "g++-14"


def test_two_gpu_backends_are_loaded_at_run_time():
    assert request(backends=["vulkan"]).options["GGML_BACKEND_DL"] == "OFF"
    both = request(backends=["vulkan", "cuda"], cuda_architectures=["89"]).options
    assert (both["GGML_BACKEND_DL"], both["GGML_VULKAN"], both["GGML_CUDA"]) == ("ON", "ON", "ON")


@pytest.mark.parametrize(
    ("pairs", "all_quants", "listed"),
    [
        ([], "OFF", "bf16-bf16;f16-f16;q4_0-q4_0;q8_0-q8_0"),
        (["q8_0/turbo4", "f16/turbo3", "turbo4/q8_0", "turbo2/turbo3"], "OFF", "bf16-bf16;f16-f16;q4_0-q4_0;q8_0-q8_0"),
        (["q8_0/f16"], "ON", "bf16-bf16;f16-f16;q4_0-q4_0;q8_0-f16;q8_0-q8_0"),
        # Its outer layers are f16/q8_0, which a build without it aborts on.
        (["f16/turbo2"], "ON", "bf16-bf16;f16-f16;f16-q8_0;q4_0-q4_0;q8_0-q8_0"),
        (["q5_1/q4_0", "q8_0/turbo4"], "ON", "bf16-bf16;f16-f16;q4_0-q4_0;q5_1-q4_0;q8_0-q8_0"),
    ],
)
def test_attention_kernels_follow_the_cache_types(pairs, all_quants, listed):
    found = _build_plan.attention_options(pairs)
    assert found["GGML_CUDA_FA_ALL_QUANTS"] == all_quants
    assert found["GGML_CUDA_FA_QUANTS"] == listed


@pytest.mark.parametrize("pair", ["turbo4/f16", "bf16/turbo4", "iq4_nl/q8_0", "q4_0/turbo3", "f16/iq4_nl"])
def test_cache_types_that_abort_in_every_build_are_refused(pair):
    with pytest.raises(_build_plan.BuildError, match=f"cache types {pair} have no CUDA or HIP attention kernel"):
        _build_plan.attention_options([pair])


@pytest.mark.parametrize("pair", ["q8_0", "q8_0/", "/q8_0"])
def test_a_pair_that_is_none(pair):
    with pytest.raises(_build_plan.BuildError, match="must be written K/V"):
        _build_plan.attention_options([pair])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"GGML_NATIVE": True}, "sets GGML_NATIVE to 'ON', and the role sets it: it compiles for the builder's own"),
        ({"CMAKE_INSTALL_RPATH": "/tmp"}, "the role sets it: libraries are found relative to the program"),
        ({"GGML_CUDA": "ON"}, "it follows from llama_build_backends"),
        ({"BAD NAME": 1}, "which is no name of a CMake variable"),
        ({"X=1 -DY": 1}, "which is no name of a CMake variable"),
    ],
)
@pytest.mark.parametrize("origin", ["cmake_options", "toolchain_options"])
def test_options_that_are_refused(origin, options, said):
    with pytest.raises(_build_plan.BuildError, match=said):
        request(**{origin: options})


@pytest.mark.parametrize("name", ["CMAKE_CUDA_ARCHITECTURES", "GPU_TARGETS", "AMDGPU_TARGETS"])
def test_native_is_refused_by_any_name(name):
    with pytest.raises(_build_plan.BuildError, match="it must name the GPUs, never the builder's own"):
        request(cmake_options={name: ["gfx1100", "native"]})


def test_the_gpus_of_the_toolchain_are_taken_where_the_inventory_names_none():
    planned = {"GGML_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": "75-virtual;89"}
    assert request(backends=["cuda"], toolchain_options=planned).options["CMAKE_CUDA_ARCHITECTURES"] == "75-virtual;89"
    named = request(backends=["cuda"], toolchain_options=planned, cuda_architectures=["120"])
    assert named.options["CMAKE_CUDA_ARCHITECTURES"] == "120"
    with pytest.raises(_build_plan.BuildError, match="`native` would be the builder's own GPU"):
        request(backends=["cuda"], toolchain_options={"CMAKE_CUDA_ARCHITECTURES": "native"})
    planned = {"GGML_HIP": "ON", "GPU_TARGETS": "gfx1151"}
    found = request(backends=["rocm"], toolchain_options=planned, rocwmma=True)
    assert found.options["GPU_TARGETS"] == found.options["CMAKE_HIP_ARCHITECTURES"] == "gfx1151"
    assert found.optional["GGML_HIP_ROCWMMA_FATTN"] == "ON"


def test_a_reserved_option_with_the_same_value_is_no_contradiction():
    assert request(toolchain_options={"GGML_CUDA": False}).options["GGML_CUDA"] == "OFF"


def test_the_user_stands_above_the_toolchain_and_both_above_the_recipe():
    found = request(
        toolchain_options={"CMAKE_BUILD_TYPE": "RelWithDebInfo", "GGML_LTO": True},
        cmake_options={"GGML_LTO": False, "LLAMA_BUILD_TESTS": True, "GGML_LIST": ["a", "b"]},
        rpath=["/opt/conda/lib"],
    )
    assert found.options["CMAKE_BUILD_TYPE"] == "RelWithDebInfo"
    assert (found.options["GGML_LTO"], found.options["GGML_LIST"]) == ("OFF", "a;b")
    assert found.options["LLAMA_BUILD_TESTS"] == "ON"
    assert "LLAMA_BUILD_TESTS" not in found.optional
    assert found.asked == ["GGML_LIST", "GGML_LTO", "LLAMA_BUILD_TESTS"]
    assert found.options["CMAKE_INSTALL_RPATH"] == "$ORIGIN/../lib:/opt/conda/lib"


def test_only_declared_options_are_passed():
    declared = _build_plan.declared_options(
        """
        option(LLAMA_BUILD_TESTS "llama: build tests" ${LLAMA_STANDALONE})
        option( GGML_CUDA_FA_QUANTS "x" OFF)
        set(GGML_SCHED_MAX_COPIES  "4" CACHE STRING "ggml: max input copies")
        set(LLAMA_VERSION "1.0")
        # option(COMMENTED_OUT "no" OFF)
        if (DEFINED LLAMA_BUILD_WEBUI)
        cmake_dependent_option("QUOTED" "x" ON "A" OFF)
        """
    )
    assert declared == ["GGML_CUDA_FA_QUANTS", "GGML_SCHED_MAX_COPIES", "LLAMA_BUILD_TESTS", "QUOTED"]
    optional = {
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_WEBUI": "OFF",
        "GGML_CUDA_FA_ALL_QUANTS": "ON",
        "GGML_CUDA_FA_QUANTS": "f16-f16",
    }
    assert _build_plan.for_tree({"GGML_CUDA": "ON"}, optional, declared) == {
        "GGML_CUDA": "ON",
        "LLAMA_BUILD_TESTS": "OFF",
        "GGML_CUDA_FA_QUANTS": "f16-f16",
    }
    older = _build_plan.for_tree({}, optional, ["GGML_CUDA_FA_ALL_QUANTS"])
    assert older == {"GGML_CUDA_FA_ALL_QUANTS": "ON"}


# The fingerprint


def test_the_fingerprint_is_pinned():
    """A change here renames every build of every fleet: raise RECIPE when it is meant."""
    assert name() == "1794752ea32dd40ba0a6d5e4557881d1"
    assert _build_plan.FINGERPRINT_DIGITS == len(name()) == 32


DIFFERENT = {
    "commit": {"source": {**GIT, "commit": "0" * 40}},
    "number": {"source": {**GIT, "number": 1}},
    "subdir": {"source": {**GIT, "subdir": "x"}},
    "kind": {"source": {"kind": "archive", "path": "x", "sha256": SHA}},
    "backend": {"backends": ["vulkan"]},
    "target": {"targets": []},
    "instruction set": {"cpu_features": ["sse42"]},
    "option": {"cmake_options": {"GGML_LTO": True}},
    "tls": {"tls": True},
    "toolchain": {"toolchain_options": {"CMAKE_CXX_FLAGS": "-O3"}},
    "rpath": {"rpath": ["/opt/conda/lib"]},
    "architecture": {"host": {**HOST, "architecture": "aarch64"}},
    "release": {"host": {**HOST, "distribution": {"id": "fedora", "version": "43"}}},
    "distribution": {"host": {**HOST, "distribution": {"id": "debian", "version": "44"}}},
    "glibc": {"host": {**HOST, "glibc": "2.42"}},
    "cmake": {"host": {**HOST, "cmake": "4.2.0"}},
    "compiler": {"host": {**HOST, "compilers": {"c": {**HOST["compilers"]["c"], "version": "gcc 15.2.1"}}}},
    "environment": {"host": {**HOST, "environment": {"ROCM_PATH": "/opt/rocm"}}},
}


def test_everything_that_decides_the_result_changes_the_fingerprint():
    names = {what: name(**more) for what, more in DIFFERENT.items()}
    names["nothing"] = name()
    assert len(set(names.values())) == len(names), names


@pytest.mark.parametrize(
    "more",
    [
        {"source": {**GIT, "url": "https://mirror.example.org/llama.git"}},
        {"targets": ["llama-bench", "llama-server"]},
        {"backends": ["cpu", "cpu"]},
        {"cpu_features": ["avx2", "sse42"]},
        {"host": {**HOST, "programs": {"ccache": "/usr/bin/ccache"}}},
    ],
    ids=["mirror", "targets", "backends", "order", "ccache"],
)
def test_what_decides_nothing_does_not(more):
    assert name(**more) == name()


@given(st.permutations(sorted(request(tls=True).options)))
def test_the_order_of_options_does_not_matter(order):
    found = request(tls=True)
    shuffled = found._replace(options={key: found.options[key] for key in order})
    assert _build_plan.fingerprint(_build_plan.fingerprint_inputs(shuffled, HOST)) == name(tls=True)


# Room


@pytest.mark.parametrize(
    ("backends", "architectures", "need"),
    [
        (["cpu"], 0, 1024),
        (["cpu", "vulkan"], 0, 2048),
        (["cpu", "cuda"], 1, 5120),
        (["cpu", "cuda"], 3, 13312),
        (["cpu", "rocm"], 0, 7168),
    ],
)
def test_disk_needed(backends, architectures, need):
    assert _build_plan.disk_needed(backends, architectures) == need


def test_no_room_is_refused_with_the_figures():
    _build_plan.check_disk(1024, 1024, "/var/lib/llamafleet/build")
    with pytest.raises(
        _build_plan.BuildError,
        match=r"takes up to 1024 MiB below /var/lib/llamafleet/build, and 1000 MiB are free there: free 24 MiB",
    ):
        _build_plan.check_disk(1024, 1000, "/var/lib/llamafleet/build")
    _build_plan.check_disk(1024, 1524, "/var/lib/llamafleet/build", 500)
    said = (
        r"1500 MiB are free there, of which builds that run there will take up to 500 MiB: free 24 MiB, wait for those"
    )
    with pytest.raises(_build_plan.BuildError, match=said):
        _build_plan.check_disk(1024, 1500, "/var/lib/llamafleet/build", 500)


def test_a_cuda_build_links_where_no_driver_is_and_asks_for_no_library_that_happens_to_be_there():
    cuda, cpu = request(backends=["cuda"], cuda_architectures=["89"]), request(backends=["cpu"])
    assert cuda.options["CMAKE_EXE_LINKER_FLAGS"] == "-Wl,--allow-shlib-undefined"
    assert cuda.optional["GGML_CUDA_NCCL"] == "OFF"
    assert "CMAKE_EXE_LINKER_FLAGS" not in cpu.options
    own = {"CMAKE_EXE_LINKER_FLAGS": "-fuse-ld=lld"}
    more = request(backends=["cuda"], cuda_architectures=["89"], cmake_options=own)
    assert more.options["CMAKE_EXE_LINKER_FLAGS"] == "-Wl,--allow-shlib-undefined -fuse-ld=lld"
    assert request(backends=["cpu"], cmake_options=own).options["CMAKE_EXE_LINKER_FLAGS"] == "-fuse-ld=lld"


def test_flags_of_the_inventory_come_on_top_of_those_that_the_toolchain_needs():
    needed = {"CMAKE_CUDA_FLAGS": "-include cuda/iterator"}

    def flags(own):
        got = request(backends=["cuda"], cuda_architectures=["89"], toolchain_options=needed, cmake_options=own)
        return got.options["CMAKE_CUDA_FLAGS"]

    assert flags({}) == "-include cuda/iterator"
    assert flags({"CMAKE_CUDA_FLAGS": "-lineinfo"}) == "-include cuda/iterator -lineinfo"
    assert flags({"CMAKE_CUDA_FLAGS": "-lineinfo -include cuda/iterator"}) == "-lineinfo -include cuda/iterator"
