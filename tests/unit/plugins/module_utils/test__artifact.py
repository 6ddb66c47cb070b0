# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _artifact
from ansible_collections.llamafleet.turboquant.tests.unit.plugins.module_utils.elf_maker import make_elf

FP = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32


def make_stage(folder: Path, machine: str = "x86_64", run_path: str = "$ORIGIN/../lib") -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "bin/llama-server").write_bytes(
        make_elf(
            machine,
            needed=["libllama.so.0", "libc.so.6"],
            run_path=run_path,
            versions_needed={"libc.so.6": ["GLIBC_2.17", "GLIBC_2.38"]},
        )
    )
    (folder / "bin/llama-server").chmod(0o755)
    (folder / "lib/libllama.so.0").write_bytes(
        make_elf(
            machine,
            soname="libllama.so.0",
            needed=["libstdc++.so.6", "libgomp.so.1"],
            run_path="$ORIGIN/../lib",
            versions_needed={"libstdc++.so.6": ["GLIBCXX_3.4.32", "GLIBCXX_3.4.9"]},
        )
    )
    (folder / "LICENSE").write_text("MIT\n", encoding="utf-8")
    return folder


def make_manifest(stage: Path, fingerprint: str = FP, **more):
    return {
        "format": _artifact.FORMAT,
        "fingerprint": fingerprint,
        "source": {"kind": "git", "commit": "0" * 40},
        "backends": ["cpu"],
        "options": {"GGML_AVX": "ON"},
        "compilers": {"c": {"version": "gcc 16"}},
        "architecture": "x86_64",
        "distribution": {"id": "fedora", "version": "44"},
        "requirements": {"glibc": "2.38", "glibcxx": "3.4.32", "libraries": ["libc.so.6"], "cpu_flags": ["avx2"]},
        "built": {"at": "2026-11-24T00:00:00Z", "seconds": 1.0},
        "files": _artifact.list_files(stage),
        **more,
    }


@pytest.fixture
def packed(tmp_path):
    stage = make_stage(tmp_path / "stage")
    path = tmp_path / f"{FP}.tar.gz"
    _artifact.pack(stage, make_manifest(stage), path)
    return path


def test_what_is_packed_comes_out_the_same(packed, tmp_path):
    staging = _artifact.unpack(packed, FP, tmp_path / "releases")
    stage = tmp_path / "stage"
    for name in ("bin/llama-server", "lib/libllama.so.0", "LICENSE"):
        assert (staging / name).read_bytes() == (stage / name).read_bytes()
    assert (staging / "bin/llama-server").stat().st_mode & 0o777 == 0o755
    assert (staging / "LICENSE").stat().st_mode & 0o777 == 0o644
    assert not (tmp_path / "releases" / FP).exists()
    release = _artifact.publish(staging, tmp_path / "releases", FP)
    assert _artifact.check_release(release)["fingerprint"] == FP
    assert _artifact.find_releases(tmp_path) == [FP]


def test_the_same_files_give_the_same_bytes(packed, tmp_path):
    again = make_stage(tmp_path / "again")
    # Other dates and another order of writing must leave no trace.
    for path in sorted(again.rglob("*"), reverse=True):
        os.utime(path, (1, 1))
    second = tmp_path / "second.tar.gz"
    _artifact.pack(again, make_manifest(again), second)
    assert second.read_bytes() == packed.read_bytes()
    with tarfile.open(packed) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [
        "manifest.json",
        "LICENSE",
        "bin/llama-server",
        "lib/libllama.so.0",
    ]
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, _artifact.EPOCH)}


def test_tar_itself_can_unpack_it(packed, tmp_path):
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xzf", str(packed), "-C", str(tmp_path / "out")], check=True)
    assert json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))["fingerprint"] == FP


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.9])
def test_one_wrong_bit_is_found(packed, tmp_path, place):
    data = bytearray(packed.read_bytes())
    data[int(len(data) * place)] ^= 0x10
    packed.write_bytes(bytes(data))
    with pytest.raises(_artifact.ArtifactError):
        _artifact.verify(packed, FP)
    with pytest.raises(_artifact.ArtifactError):
        _artifact.unpack(packed, FP, tmp_path / "releases")
    assert list((tmp_path / "releases").iterdir()) == []


@pytest.mark.parametrize("part", [0, 10, 200, -1])
def test_an_archive_cut_short_is_damaged(packed, part):
    packed.write_bytes(packed.read_bytes()[:part])
    with pytest.raises(_artifact.ArtifactError, match="damaged"):
        _artifact.verify(packed)


def rewrite(path: Path, change) -> None:
    """Pack the members of an artifact again after a change that gzip's own checksum does not see."""
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive.getmembers()]
    members = change(members)
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for member, data in members:
            if member.isreg():
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def with_member(name="evil", data=b"x", kind=tarfile.REGTYPE, link=""):
    def change(members):
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = link
        return [*members, (member, data)]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: [(m, d + b"!" if m.name == "LICENSE" else d) for m, d in found], "LICENSE has the sha256"),
        (lambda found: [item for item in found if item[0].name != "LICENSE"], "it lacks LICENSE"),
        (lambda found: found[1:], "does not begin with manifest.json"),
        (with_member(), "evil, which its manifest does not name"),
        (with_member("LICENSE"), "LICENSE, which its manifest does not name, or twice"),
        (with_member("../evil"), "names must be relative"),
        (with_member("/etc/evil"), "names must be relative"),
        (with_member("bin/llama-quick", kind=tarfile.SYMTYPE, link="/bin/sh"), "no plain file"),
    ],
)
def test_an_archive_that_does_not_fit_its_manifest(packed, tmp_path, change, said):
    rewrite(packed, change)
    with pytest.raises(_artifact.ArtifactError, match=said):
        _artifact.unpack(packed, FP, tmp_path / "releases")
    assert list((tmp_path / "releases").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_another_build_is_refused(packed):
    with pytest.raises(_artifact.ArtifactError, match=f"holds the build {FP}, and {OTHER} was asked for"):
        _artifact.verify(packed, OTHER)


def test_no_archive_and_no_tar(tmp_path):
    with pytest.raises(_artifact.ArtifactError, match="there is no artifact"):
        _artifact.verify(tmp_path / "none")
    (tmp_path / "text").write_text("not an archive", encoding="utf-8")
    with pytest.raises(_artifact.ArtifactError, match="damaged"):
        _artifact.read_manifest(tmp_path / "text")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "is of format 2, and this collection reads 1"),
        ({"fingerprint": "../../etc"}, "a fingerprint is 32 digits"),
        ({"files": {"../x": {"mode": "0644", "sha256": "", "size": 1}}}, "names must be relative"),
        ({"files": {"x": {"mode": "4755", "sha256": "", "size": 1}}}, "the mode '4755': it may be 0644 or 0755"),
        ({"files": {"x": {"size": 1}}}, "mode, sha256 and size are needed"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, change, said):
    stage = make_stage(tmp_path / "stage")
    with pytest.raises(_artifact.ArtifactError, match=said):
        _artifact.check_manifest(make_manifest(stage, **change))


def test_a_manifest_lacks_a_part(tmp_path):
    manifest = make_manifest(make_stage(tmp_path / "stage"))
    del manifest["requirements"]
    with pytest.raises(_artifact.ArtifactError, match="lacks requirements"):
        _artifact.check_manifest(manifest)
    with pytest.raises(_artifact.ArtifactError, match="holds a list"):
        _artifact.check_manifest([])


def test_links_are_not_packed(tmp_path):
    stage = make_stage(tmp_path / "stage")
    (stage / "lib/libllama.so").symlink_to("libllama.so.0")
    with pytest.raises(_artifact.ArtifactError, match=r"lib/libllama\.so is no plain file"):
        _artifact.list_files(stage)


def test_a_stage_that_changed_is_not_packed(tmp_path):
    stage = make_stage(tmp_path / "stage")
    manifest = make_manifest(stage)
    (stage / "LICENSE").write_text("other\n", encoding="utf-8")
    with pytest.raises(_artifact.ArtifactError, match="does not describe the files"):
        _artifact.pack(stage, manifest, tmp_path / "a.tar.gz")
    assert not (tmp_path / "a.tar.gz").exists()


def test_requirements_are_those_of_all_files(tmp_path):
    assert _artifact.library_requirements(make_stage(tmp_path / "stage")) == {
        "architecture": "x86_64",
        "glibc": "2.38",
        "glibcxx": "3.4.32",
        "libraries": ["libc.so.6", "libgomp.so.1", "libstdc++.so.6"],
        "run_path": [],
    }


@pytest.mark.parametrize("planned", ["/srv/conda/env-0/lib", "/srv/conda/env-0/lib/"])
def test_a_run_path_that_the_toolchain_planned_is_one_that_a_host_has(tmp_path, planned):
    stage = make_stage(tmp_path / "stage", run_path="$ORIGIN/../lib:/srv/conda/env-0/lib:/opt/rocm/lib")
    assert _artifact.library_requirements(stage, [planned])["run_path"] == ["/opt/rocm/lib", "/srv/conda/env-0/lib"]


@pytest.mark.parametrize("path", ["/var/lib/llamafleet/build/work/x/build/bin", "bin", "$ORIGIN/../lib:/home/me"])
def test_a_run_path_into_the_build_folder_is_refused(tmp_path, path):
    with pytest.raises(_artifact.ArtifactError, match="would only run where it was built"):
        _artifact.library_requirements(make_stage(tmp_path / "stage", run_path=path), ["/srv/conda/lib"])


def test_two_architectures_are_refused(tmp_path):
    stage = make_stage(tmp_path / "stage")
    (stage / "lib/other.so").write_bytes(make_elf("aarch64"))
    with pytest.raises(_artifact.ArtifactError, match="2 architectures"):
        _artifact.library_requirements(stage)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"glibc": "2.38"}, None),
        ({"glibc": "2.37"}, "needs glibc 2.38 or newer, and this host has 2.37"),
        ({"glibc": "2.9"}, "needs glibc 2.38 or newer, and this host has 2.9"),
        ({"glibcxx": "3.4.31"}, "needs the symbols GLIBCXX_3.4.32"),
        ({"glibcxx": None}, None),  # no libstdc++ at all: the loader names it when it is asked
        ({"architecture": "aarch64"}, "was built for x86_64, and this host is aarch64"),
        ({"cpu_flags": {"avx"}}, "this one lacks avx2"),
    ],
)
def test_refusals(tmp_path, change, said):
    host = _artifact.Host("x86_64", "2.42", "3.4.34", {"avx", "avx2"})._replace(**change)
    found = _artifact.refusals(make_manifest(make_stage(tmp_path / "stage")), host)
    if said is None:
        assert found == []
    else:
        assert said in "; ".join(found)


def test_this_host_is_read():
    host = _artifact.read_host()
    assert host.architecture == os.uname().machine
    assert host.glibc == os.confstr("CS_GNU_LIBC_VERSION").split()[1]
    assert host.cpu_flags


def test_cpu_flags_of_arm():
    assert _artifact.cpu_flags("processor\t: 0\nFeatures\t: fp asimd\n\nFeatures\t: other\n") == {"fp", "asimd"}
    assert _artifact.cpu_flags("") == set()


# Releases


def make_release(root: Path, fingerprint: str, age: int) -> Path:
    release = root / "releases" / fingerprint
    stage = make_stage(release)
    (stage / "manifest.json").write_text(json.dumps(make_manifest(stage, fingerprint)), encoding="utf-8")
    os.utime(release, (1000 - age, 1000 - age))
    return release


def test_current_is_switched_in_one_step(tmp_path):
    assert _artifact.current_release(tmp_path) is None
    for name in (FP, OTHER):
        make_release(tmp_path, name, 0)
        _artifact.switch(tmp_path, name)
        assert _artifact.current_release(tmp_path) == name
        # Relative, so that the root can be looked at from outside a container.
        assert (tmp_path / "current").readlink() == Path("releases") / name
        assert (tmp_path / "current/bin/llama-server").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "releases"]


def test_no_switch_to_what_is_not_there(tmp_path):
    make_release(tmp_path, FP, 0)
    _artifact.switch(tmp_path, FP)
    with pytest.raises(_artifact.ArtifactError, match="there is no release"):
        _artifact.switch(tmp_path, OTHER)
    assert _artifact.current_release(tmp_path) == FP


def test_a_current_that_is_no_link_is_left_alone(tmp_path):
    (tmp_path / "current").mkdir()
    with pytest.raises(_artifact.ArtifactError, match="is no link"):
        _artifact.current_release(tmp_path)


def test_a_release_is_never_written_over(packed, tmp_path):
    releases = tmp_path / "releases"
    _artifact.publish(_artifact.unpack(packed, FP, releases), releases, FP)
    staging = _artifact.unpack(packed, FP, releases)
    with pytest.raises(_artifact.ArtifactError, match="is there already"):
        _artifact.publish(staging, releases, FP)


def test_a_release_with_a_short_file_is_damaged(tmp_path):
    release = make_release(tmp_path, FP, 0)
    assert _artifact.check_release(release)["fingerprint"] == FP
    (release / "LICENSE").write_text("", encoding="utf-8")
    with pytest.raises(_artifact.ArtifactError, match="LICENSE has 0 bytes, and the manifest says 4 bytes"):
        _artifact.check_release(release)
    (release / "LICENSE").unlink()
    with pytest.raises(_artifact.ArtifactError, match="LICENSE is missing"):
        _artifact.check_release(release)


@pytest.mark.parametrize(
    ("keep", "protected", "gone"),
    [
        (3, ["a"], ["d", "e"]),
        (1, ["a"], ["b", "c", "d", "e"]),
        (2, ["e"], ["b", "c", "d"]),  # the current one is old: it stays, and one more
        (1, ["c", "e"], ["a", "b", "d"]),  # more are in use than may stay: those in use stay
        (9, ["a"], []),
        (2, [None, "a"], ["c", "d", "e"]),
    ],
)
def test_to_prune(keep, protected, gone):
    assert _artifact.to_prune(["a", "b", "c", "d", "e"], keep, protected) == gone


def test_keeping_none_is_refused():
    with pytest.raises(_artifact.ArtifactError, match="keep is 0: at least 1"):
        _artifact.to_prune(["a"], 0, [])


def test_newest_release_first(tmp_path):
    names = [character * 32 for character in "abc"]
    for age, name in enumerate(names):
        make_release(tmp_path, name, age)
    (tmp_path / "releases/note").mkdir()
    assert _artifact.find_releases(tmp_path) == names


def test_a_running_release_is_seen(tmp_path):
    release = make_release(tmp_path, FP, 0)
    make_release(tmp_path, OTHER, 0)
    program = release / "bin/waiting"
    shutil.copy(shutil.which("sleep"), program)
    process = subprocess.Popen([str(program), "60"])
    try:
        assert _artifact.running_releases(tmp_path) == {FP}
    finally:
        process.kill()
        process.wait()
    assert _artifact.running_releases(tmp_path) == set()


def test_left_overs_are_those_of_processes_that_ended(tmp_path):
    releases = tmp_path / "releases"
    mine = releases / f".staging-{FP}-{os.getpid()}"
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = releases / f".staging-{FP}-{int(done.stdout)}"
    for path in (mine, dead):
        path.mkdir(parents=True)
    assert _artifact.left_overs(releases) == [dead]
    assert _artifact.left_overs(tmp_path / "none") == []
