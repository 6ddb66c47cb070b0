# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How Debian's packages become RPMs of Fedora's names (tests/image/make_repo.py, packages.toml)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="the image is built with Python 3.11 or later")

IMAGE = Path(__file__).resolve().parents[2] / "image"
spec = importlib.util.spec_from_file_location("llamafleet_make_repo", IMAGE / "make_repo.py")
make_repo = importlib.util.module_from_spec(spec)
# Its dataclass looks for its own module.
sys.modules[spec.name] = make_repo
spec.loader.exec_module(make_repo)
RECIPE = tomllib.loads((IMAGE / "packages.toml").read_text(encoding="utf-8"))


def deb(name: str, depends: str = "", provides: str = "") -> object:
    return make_repo.Deb(
        path=Path(f"{name}.deb"),
        name=name,
        version="1",
        depends=make_repo.names(depends),
        provides=[group[0] for group in make_repo.names(provides)],
        files=[],
        folders=[],
        conffiles=[],
    )


@pytest.mark.parametrize(
    ("relation", "expected"),
    [
        ("", []),
        ("libc6 (>= 2.38), foo:any", [["libc6"], ["foo"]]),
        ("a | b (= 1) [amd64], c <!nocheck>", [["a", "b"], ["c"]]),
    ],
)
def test_names(relation, expected):
    assert make_repo.names(relation) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1:2.47.0-1", "2.47.0"), ("3.5.1+ds1-1", "3.5.1+ds1"), ("1.0~rc1-2", "1.0~rc1"), ("1-2-3", "1.2"), ("7", "7")],
)
def test_rpm_version(version, expected):
    assert make_repo.rpm_version(version) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/lib/x", "/usr/lib/x"), ("/sbin/x", "/usr/sbin/x"), ("/usr/lib/x", "/usr/lib/x"), ("/libexec/x", "/libexec/x")],
)
def test_merged(path, expected):
    assert make_repo.merged(path) == expected


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("/usr/share/doc/gcc/README", True),
        ("/usr/lib/gcc/x86_64-linux-gnu/15/libasan.a", True),
        ("/usr/lib/gcc/x86_64-linux-gnu/15/libgcc.a", False),
        ("/usr/bin/x86_64-linux-gnu-lto-dump-15", True),
        ("/usr/share/documents/x", False),
    ],
)
def test_left_out(path, left_out):
    assert bool(make_repo.LEFT_OUT.search(path)) is left_out


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("/usr/bin/g++-15", True),
        ("/usr/bin/gcc-ar-15", True),
        ("/usr/bin/x86_64-linux-gnu-g++-15", False),
        ("/usr/bin/git", False),
    ],
)
def test_versioned_compilers_come_only_with_their_package(path, hidden):
    assert bool(make_repo.VERSIONED.search(path)) is hidden


def test_closure_follows_alternatives_and_what_is_provided():
    debs = [deb("a", "b | c, base, virtual"), deb("c", "d"), deb("d"), deb("e", "", "virtual"), deb("other")]
    collection = make_repo.Collection(debs, {"base"}, set())
    assert collection.closure(["a"]) == {"a", "c", "d", "e"}


def test_closure_leaves_out_what_the_recipe_leaves_out():
    collection = make_repo.Collection([deb("a", "perl, b"), deb("perl"), deb("b")], set(), {"perl"})
    assert collection.closure(["a"]) == {"a", "b"}


def test_a_dependency_that_apt_did_not_fetch_is_refused():
    collection = make_repo.Collection([deb("a", "b | c")], set(), set())
    with pytest.raises(SystemExit, match=r"a depends on b \| c, which apt did not fetch"):
        collection.closure(["a"])


def test_a_package_that_does_not_exist_is_refused():
    with pytest.raises(SystemExit, match="names the Debian package nothing"):
        make_repo.Collection([], set(), set()).closure(["nothing"])


@pytest.mark.parametrize(
    ("release", "there", "absent"),
    [
        ("43", {"gcc-c++", "gcc14-c++"}, {"gcc15-c++", "gcc16-c++"}),
        ("44", {"gcc-c++", "gcc15-c++"}, {"gcc14-c++", "gcc16-c++"}),
    ],
)
def test_compilers_of_a_release(release, there, absent):
    packages = make_repo.packages_of(RECIPE, release, "x86_64-linux-gnu")
    assert there <= set(packages)
    assert not absent & set(packages)
    stock = RECIPE["compilers"][release]["gcc"]
    assert packages["gcc-c++"]["links"]["/usr/bin/g++"] == f"x86_64-linux-gnu-g++-{stock}"


def test_an_unknown_requirement_is_refused():
    collection = make_repo.Collection([], set(), set())
    with pytest.raises(SystemExit, match="x requires y, which release 44 does not offer"):
        make_repo.fedora_section("x", {"requires": ["y"]}, collection, "44", {"x"})


@pytest.mark.parametrize("release", list(RECIPE["compilers"]))
def test_no_link_belongs_to_two_packages(release):
    packages = make_repo.packages_of(RECIPE, release, "x86_64-linux-gnu")
    links = [path for package in packages.values() for path in package.get("links", {})]
    assert len(links) == len(set(links))
