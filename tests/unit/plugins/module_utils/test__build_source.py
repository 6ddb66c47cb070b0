# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _build_source

LISTS = 'cmake_minimum_required(VERSION 3.14...3.28)\nproject("llama.cpp" C CXX)\n'


def make_tree(top: Path, *folders: str) -> Path:
    for folder in folders:
        (top / folder).mkdir(parents=True, exist_ok=True)
        (top / folder / "CMakeLists.txt").write_text(LISTS, encoding="utf-8")
    return top


@pytest.mark.parametrize("folder", [".", "llama.cpp", "pkg-1.0/llama.cpp", "pkg-1.0/vendor/llama.cpp"])
def test_the_only_llama_is_found(tmp_path, folder):
    make_tree(tmp_path, folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/CMakeLists.txt").write_text("project(other)\n", encoding="utf-8")
    assert _build_source.find_root(tmp_path, "") == tmp_path / folder


def test_what_lies_inside_another_does_not_count(tmp_path):
    make_tree(tmp_path, "a", "a/vendor/llama.cpp")
    assert _build_source.find_root(tmp_path, "") == tmp_path / "a"


@pytest.mark.parametrize(
    ("folders", "subdir", "said"),
    [
        ([], "", "has 0 folders"),
        (["a", "b"], "", r"has 2 folders .*\(a, b\): exactly one is needed, or llama_build_source.subdir"),
        (["1/2/3/4/5"], "", "has 0 folders"),
        (["a"], "b", "source subdir 'b' has no CMakeLists.txt that names the project llama.cpp"),
    ],
)
def test_no_root_is_refused(tmp_path, folders, subdir, said):
    make_tree(tmp_path, *folders)
    with pytest.raises(_build_source.SourceError, match=said):
        _build_source.find_root(tmp_path, subdir)


def test_the_one_named_is_taken(tmp_path):
    make_tree(tmp_path, "a", "b")
    assert _build_source.find_root(tmp_path, "b") == tmp_path / "b"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('project("llama.cpp" C CXX)', True),
        ("project(llama.cpp)", True),
        ("  PROJECT( llama.cpp C )", True),
        ("project(llama.cpp-bindings)", False),
        ('# project("llama.cpp")', False),
        ("project(other)", False),
    ],
)
def test_is_llama(tmp_path, line, expected):
    (tmp_path / "CMakeLists.txt").write_text(f"include(x)\n{line}\n", encoding="utf-8")
    assert _build_source.is_llama(tmp_path) is expected


# Folders


def test_the_digest_sees_names_contents_modes_and_links(tmp_path):
    top = make_tree(tmp_path / "top", ".", "src")
    (top / "run.sh").write_text("x", encoding="utf-8")
    (top / "link").symlink_to("run.sh")
    seen = [_build_source.digest_directory(top)]
    (top / "run.sh").chmod(0o755)
    seen.append(_build_source.digest_directory(top))
    (top / "run.sh").write_text("y", encoding="utf-8")
    seen.append(_build_source.digest_directory(top))
    (top / "run.sh").rename(top / "go.sh")
    seen.append(_build_source.digest_directory(top))
    (top / "link").unlink()
    (top / "link").symlink_to("go.sh")
    seen.append(_build_source.digest_directory(top))
    assert len(set(seen)) == len(seen)
    # What does not count: dates, the order on the disk, and git's own data.
    os.utime(top / "go.sh", (1, 1))
    (top / ".git/objects").mkdir(parents=True)
    (top / ".git/HEAD").write_text("ref: refs/heads/main\n", encoding="utf-8")
    assert _build_source.digest_directory(top) == seen[-1]


def test_a_copy_has_the_same_digest(tmp_path):
    top = make_tree(tmp_path / "top", ".", "src", "src/deep")
    (top / "folder-link").symlink_to("src")
    (top / "run.sh").write_text("x", encoding="utf-8")
    (top / "run.sh").chmod(0o755)
    _build_source.copy_directory(top, tmp_path / "copy")
    assert _build_source.digest_directory(tmp_path / "copy") == _build_source.digest_directory(top)
    assert (tmp_path / "copy/folder-link").is_symlink()


def test_what_is_no_folder_or_no_file_is_refused(tmp_path):
    with pytest.raises(_build_source.SourceError, match="is no folder on the builder"):
        _build_source.digest_directory(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(_build_source.SourceError, match="neither a file nor a link"):
        _build_source.digest_directory(tmp_path)


def test_a_link_out_of_the_folder_is_not_copied(tmp_path):
    top = make_tree(tmp_path / "top", ".")
    (top / "out").symlink_to("../../etc/passwd")
    with pytest.raises(_build_source.SourceError, match="leads out of its folder"):
        _build_source.copy_directory(top, tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "target", "inside"),
    [
        ("a/link", "b", True),
        ("a/link", "../b", True),
        ("a/b/link", "../../c/d", True),
        ("a/link", "../../b", False),
        ("link", "..", False),
        ("link", "/etc/passwd", False),
        ("a/link", "b/../../../c", False),
    ],
)
def test_check_link(name, target, inside):
    if inside:
        _build_source.check_link(name, target)
        return
    with pytest.raises(_build_source.SourceError, match="leads out of its folder"):
        _build_source.check_link(name, target)


# Archives


def make_tar(path: Path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            data = b""
            if kind == tarfile.REGTYPE:
                data = content
                member.size = len(data)
            elif content:
                member.linkname = content
            archive.addfile(member, io.BytesIO(data))
    return path


FILE, LINK, HARD, FOLDER, DEVICE = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2", "w"])
def test_archives_are_unpacked(tmp_path, mode):
    path = make_tar(
        tmp_path / "a.tar",
        [("p/", FOLDER, ""), ("p/CMakeLists.txt", FILE, LISTS.encode()), ("p/src/link", LINK, "../CMakeLists.txt")],
        mode,
    )
    _build_source.unpack(path, tmp_path / "out")
    assert _build_source.find_root(tmp_path / "out", "") == tmp_path / "out/p"
    assert (tmp_path / "out/p/src/link").read_text(encoding="utf-8") == LISTS


def test_zip_archives_are_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("p/CMakeLists.txt", LISTS)
    _build_source.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert _build_source.find_root(tmp_path / "out", "") == tmp_path / "out/p"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../evil", FILE, b"x")], "names '../evil', which leaves"),
        ([("a/../../evil", FILE, b"x")], "which leaves"),
        ([("/tmp/evil", FILE, b"x")], "names '/tmp/evil', which leaves"),
        ([("link", LINK, "/etc")], "leads out of its folder"),
        ([("link", LINK, ".."), ("link/evil", FILE, b"x")], "leads out of its folder"),
        ([("a/link", LINK, "../b"), ("a/link", FILE, b"x")], "names a/link twice"),
        ([("hard", HARD, "/etc/passwd")], "neither file, folder nor symbolic link"),
        ([("device", DEVICE, "")], "neither file, folder nor symbolic link"),
    ],
)
def test_an_archive_that_reaches_out_is_refused(tmp_path, members, said):
    path = make_tar(tmp_path / "a.tar.gz", members)
    with pytest.raises(_build_source.SourceError, match=said):
        _build_source.unpack(path, tmp_path / "deep/out")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "deep/evil").exists()


def test_a_zip_archive_that_reaches_out_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../evil", "x")
    with pytest.raises(_build_source.SourceError, match="which leaves the folder"):
        _build_source.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("data", [b"", b"not an archive at all", b"\x1f\x8b\x08\x00broken"])
def test_what_is_no_archive_is_refused(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(_build_source.SourceError, match="cannot be unpacked"):
        _build_source.unpack(tmp_path / "a", tmp_path / "out")
