# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The grubby double behaves as grubby-bls 8.40-69 was seen to.

Each expectation was observed with the real script in a container, on the same files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GRUBBY = Path(__file__).resolve().parents[2] / "image" / "grubby"
ID = "5fd5f2a0c1d94b6c9a6f3f7d0a0b1c2d"
NEW, OLD = "6.19.8-200.fc44.x86_64", "6.18.5-200.fc44.x86_64"
RESCUE = f"0-rescue-{ID}"
OPTIONS = "root=UUID=1 ro quiet"


class Host:
    """A tree with two kernels and a rescue entry, and grubby on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries = root / "boot/loader/entries"
        for folder in (self.entries, root / "boot/grub2", root / "etc/kernel", root / "etc/default", root / "bin"):
            folder.mkdir(parents=True)
        self.entry(NEW, NEW)
        self.entry(OLD, OLD)
        self.entry("0-rescue", RESCUE)
        self.cmdline = root / "etc/kernel/cmdline"
        self.cmdline.write_text(f"{OPTIONS}\n", encoding="utf-8")
        self.default = root / "etc/default/grub"
        self.default.write_text('GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX="quiet"\n', encoding="utf-8")
        (root / "etc/machine-id").write_text(f"{ID}\n", encoding="utf-8")
        self.grubenv = root / "boot/grub2/grubenv"
        self.grubenv.write_text(f"# GRUB Environment Block\nsaved_entry={ID}-{NEW}\n".ljust(1024, "#"), "utf-8")
        # Its presence is all that the double asks.
        self.editenv = root / "bin/grub2-editenv"
        self.editenv.write_text("#!/bin/sh\n", encoding="utf-8")
        self.editenv.chmod(0o755)

    def entry(self, name: str, version: str, options: str = OPTIONS) -> None:
        (self.entries / f"{ID}-{name}.conf").write_text(
            f"title Fedora Linux ({version}) 44\nversion {version}\nlinux /boot/vmlinuz-{version}\n"
            f"initrd /boot/initramfs-{version}.img\noptions {options}\n",
            encoding="utf-8",
        )

    def all_options(self, options: str) -> None:
        for name, version in ((NEW, NEW), (OLD, OLD), ("0-rescue", RESCUE)):
            self.entry(name, version, options)

    def run(self, *args: str, mode: str = "") -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": f"{self.root / 'bin'}:/usr/bin:/bin",
            "LLAMAFLEET_GRUBBY_ROOT": str(self.root),
            "LLAMAFLEET_GRUBBY": mode,
        }
        return subprocess.run(
            [sys.executable, str(GRUBBY), *args], cwd=self.root, env=env, capture_output=True, text=True, check=False
        )

    def options(self) -> dict[str, str]:
        """The options line of each entry."""
        return {
            path.name[len(ID) + 1 : -len(".conf")]: line[len("options ") :]
            for path in self.entries.glob("*.conf")
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith("options ")
        }

    def snapshot(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.root)): path.read_text(encoding="utf-8")
            for path in self.root.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path / "host")


def test_info_of_all(host):
    host.entry(NEW, NEW, f"{OPTIONS} $tuned_params")
    done = host.run("--info=ALL")
    assert done.returncode == 0
    assert done.stdout == "".join(
        f'index={index}\nkernel="/boot/vmlinuz-{version}"\nargs="ro quiet{extra}"\nroot="UUID=1"\n'
        f'initrd="/boot/initramfs-{version}.img"\ntitle="Fedora Linux ({version}) 44"\nid="{ID}-{name}"\n'
        for index, name, version, extra in (
            (0, NEW, NEW, " $tuned_params"),
            (1, OLD, OLD, ""),
            (2, "0-rescue", RESCUE, ""),
        )
    )


def test_entries_are_in_the_order_of_versions(host):
    for version in ("6.18.10-1", "6.9.0", "6.18.5-200.fc44.x86_64~custom", "6.19.8~rc1"):
        host.entry(version, version)
    ids = [line[4 + len(ID) + 1 : -1] for line in host.run("--info=ALL").stdout.splitlines() if line.startswith("id=")]
    assert ids == [NEW, "6.19.8~rc1", "6.18.10-1", OLD, f"{OLD}~custom", "6.9.0", "0-rescue"]


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--default-index", "0"),
        ("--default-kernel", f"/boot/vmlinuz-{NEW}"),
        ("--default-title", f"Fedora Linux ({NEW}) 44"),
    ],
)
def test_default(host, option, answer):
    assert host.run(option).stdout == f"{answer}\n"


def test_update_of_all_writes_every_store(host):
    assert host.run("--update-kernel=ALL", "--args=a=1 b").returncode == 0
    assert set(host.options().values()) == {f"{OPTIONS} a=1 b"}
    assert host.cmdline.read_text(encoding="utf-8") == f"{OPTIONS} a=1 b\n"
    assert 'GRUB_CMDLINE_LINUX="quiet a=1 b"\n' in host.default.read_text(encoding="utf-8")


def test_grubenv_is_written_where_it_has_kernelopts(host):
    text = host.grubenv.read_text(encoding="utf-8").rstrip("#") + "kernelopts=root=UUID=9 ro\n"
    host.grubenv.write_text(text.ljust(1024, "#"), encoding="utf-8")
    host.entry(NEW, NEW, "$kernelopts")
    host.run("--update-kernel=ALL", "--args=a=1")
    assert "kernelopts=root=UUID=9 ro a=1\n" in host.grubenv.read_text(encoding="utf-8")
    assert len(host.grubenv.read_bytes()) == 1024
    assert host.options()[NEW] == "$kernelopts"
    assert 'args="ro a=1"' in host.run("--info=0").stdout


@pytest.mark.parametrize(
    ("which", "changed"),
    [("DEFAULT", NEW), ("1", OLD), (f"/boot/vmlinuz-{OLD}", OLD), (f"TITLE=Fedora Linux ({RESCUE}) 44", "0-rescue")],
)
def test_update_of_one_entry_leaves_the_other_stores(host, which, changed):
    before = host.snapshot()
    assert host.run(f"--update-kernel={which}", "--args=a=1").returncode == 0
    assert {name for name, options in host.options().items() if options != OPTIONS} == {changed}
    file = f"boot/loader/entries/{ID}-{changed}.conf"
    assert {name for name, text in host.snapshot().items() if text != before[name]} == {file}


@pytest.mark.parametrize(
    ("options", "arguments", "after"),
    [
        pytest.param("a=1 b", ["--args=a=2"], "b a=2", id="deleted, then appended: the position moves"),
        pytest.param("console=a console=b", ["--args=console=c"], "console=c", id="several of one name collapse"),
        pytest.param("amd_iommu=on iommu=pt", ["--args=iommu=off"], "amd_iommu=on iommu=off", id="names end at blanks"),
        pytest.param("ttmXp=3", ["--args=ttm.p=5"], "ttm.p=5", id="a dot is any character"),
        pytest.param("aab=1 b=2", ["--args=a*b=5"], "a*b=5", id="a star is a repetition"),
        pytest.param("quiet quiet", ["--remove-args=quiet"], "quiet", id="the second of two adjoining flags stays"),
        pytest.param("a=1 a=2", ["--remove-args=a=2"], "a=1", id="the exact pair only"),
        pytest.param("a=1", ["--remove-args=a=2"], "a=1", id="nothing to remove"),
        pytest.param("a=1", ["--remove-args=a", "--args=a=2"], "a=2", id="removal comes first"),
        pytest.param("x=/a/b", ["--remove-args=x=/a/b", "--args=y=/c"], "y=/c", id="slashes are safe"),
        pytest.param("a", ["--args=x=1&2"], "a x=1options a2", id="& is the line that was there"),
        pytest.param("a", [r"--args=y=b\qc"], "a y=bqc", id="a backslash is lost"),
        pytest.param("a", [r"--args=y=\1"], "a", id="a back reference: sed refuses and the entry stays"),
        pytest.param("a=1", ["--args=b(=5"], "b(=5", id="a broken expression empties the line first"),
    ],
)
def test_arguments_of_an_entry(host, options, arguments, after):
    host.all_options(options)
    assert host.run("--update-kernel=0", *arguments).returncode == 0
    assert host.options()[NEW] == after


def test_same_call_again_changes_no_content_but_rewrites(host):
    host.run("--update-kernel=ALL", "--args=a=1")
    before = host.snapshot()
    file = host.entries / f"{ID}-{NEW}.conf"
    os.utime(file, (1, 1))
    assert host.run("--update-kernel=ALL", "--args=a=1").returncode == 0
    assert host.snapshot() == before
    assert file.stat().st_mtime > 1


def test_missing_kernel_cmdline_is_made_from_the_rescue_entry(host):
    host.entry("0-rescue", RESCUE, "root=UUID=1 ro rescue")
    host.cmdline.unlink()
    host.run("--update-kernel=DEFAULT", "--args=a=1")
    assert not host.cmdline.exists()
    host.run("--update-kernel=ALL", "--args=a=1")
    assert host.cmdline.read_text(encoding="utf-8") == "root=UUID=1 ro rescue a=1\n"


def test_etc_default_is_a_script(host):
    host.default.write_text('GRUB_CMDLINE_LINUX="a=$(echo 7)"\nGRUB_CMDLINE_LINUX_DEFAULT="z"\n', encoding="utf-8")
    host.run("--update-kernel=ALL", "--args=b=1")
    assert host.default.read_text(encoding="utf-8") == (
        'GRUB_CMDLINE_LINUX="a=7 b=1"\nGRUB_CMDLINE_LINUX_DEFAULT="z"\n'
    )


def test_old_version_overwrites_every_variable_that_begins_so(host):
    host.default.write_text('GRUB_CMDLINE_LINUX="a"\nGRUB_CMDLINE_LINUX_DEFAULT="z"\n', encoding="utf-8")
    host.run("--update-kernel=ALL", "--args=b=1", mode="8.40-69")
    assert host.default.read_text(encoding="utf-8") == 'GRUB_CMDLINE_LINUX="a b=1"\n' * 2


def test_no_etc_grub_update(host):
    before = host.default.read_text(encoding="utf-8")
    assert host.run("--update-kernel=ALL", "--args=a=1", "--no-etc-grub-update").returncode == 0
    assert host.default.read_text(encoding="utf-8") == before
    assert host.cmdline.read_text(encoding="utf-8") == f"{OPTIONS} a=1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no action specified"),
        (["--args=a=1"], "no action specified"),
        (["--update-kernel=/boot/vmlinuz-9", "--args=a=1"], "The param /boot/vmlinuz-9 is incorrect"),
        (["--info=7"], "The param 7 is incorrect"),
        (["--no-etc-grub-update", "--update-kernel=ALL", "--args=a=1"], 'invalid option "ALL"'),
        (["--nonsense"], "nonsense"),
    ],
)
def test_the_errors_that_the_exit_code_tells(host, arguments, message):
    before = host.snapshot()
    done = host.run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert host.snapshot() == before


def test_no_entries_is_no_error(host):
    for path in host.entries.iterdir():
        path.unlink()
    done = host.run("--update-kernel=ALL", "--args=a=1")
    assert (done.returncode, host.options()) == (0, {})
    assert host.cmdline.read_text(encoding="utf-8") == f"{OPTIONS} a=1\n"


def test_missing_editenv_is_no_error(host):
    host.editenv.unlink()
    done = host.run("--update-kernel=ALL", "--args=a=1")
    assert done.returncode == 0
    assert "grub2-editenv" in done.stderr
    assert set(host.options().values()) == {f"{OPTIONS} a=1"}


def test_silent_mode_does_nothing_and_says_nothing(host):
    before = host.snapshot()
    done = host.run("--update-kernel=ALL", "--args=a=1", "--remove-args=quiet", mode="silent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert host.snapshot() == before


def test_mode_by_file(host):
    (host.root / "etc/llamafleet-test").mkdir()
    (host.root / "etc/llamafleet-test/grubby").write_text("silent\n", encoding="utf-8")
    before = host.snapshot()
    host.run("--update-kernel=ALL", "--args=a=1")
    assert host.snapshot() == before


def test_set_default_and_remove_kernel(host):
    done = host.run("--set-default=1")
    assert f"with index 1 and kernel /boot/vmlinuz-{OLD}" in done.stderr
    assert host.run("--default-index").stdout == "1\n"
    host.run("--remove-kernel=0")
    assert sorted(host.options()) == ["0-rescue", OLD]
    assert host.run("--default-index").stdout == "0\n"


def test_add_kernel(host):
    assert host.run("--add-kernel=/boot/vmlinuz-7.0", "--title=Seven").returncode == 1
    (host.root / "boot/vmlinuz-7.0").touch()
    assert host.run("--add-kernel=/boot/vmlinuz-7.0", "--title=Seven", "--copy-default", "--args=z").returncode == 0
    assert host.options()["7.0"] == f"{OPTIONS} z"
