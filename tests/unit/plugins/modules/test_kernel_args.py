# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module on a file tree of its own, with grubby, rpm-ostree and modinfo played by this file.

The player of grubby deletes and appends by sed's rules on the tree's files, as 8.40-69 was observed to do.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.modules import kernel_args

NEW = "4c5f-6.18.9-200.fc43.x86_64"
OLD = "4c5f-6.17.1-300.fc43.x86_64"
RESCUE = "4c5f-0-rescue"
ROOT_ARG = "root=UUID=7f1e"
BASE = "ro rootflags=subvol=root rhgb quiet"
PAGES = {"ttm.pages_limit": 29360128}
WANTED = "ttm.pages_limit=29360128"


class Exit(Exception):
    def __init__(self, result):
        super().__init__(result.get("msg", ""))
        self.result = result


class Machine:
    """A host: its files, and its tools as far as the module calls them."""

    def __init__(self, root):
        self.root = root
        self.grubby = "real"
        self.tools = {"grubby", "modinfo"}
        self.parameters = {"ttm": "page_pool_size:x (ulong)\npages_limit:y (ulong)\n"}
        self.ostree = ""
        self.ostree_rc = 0
        self.calls = []
        for entry in (NEW, OLD, RESCUE):
            self.entry(entry, BASE)
        self.put("etc/kernel/cmdline", f"{ROOT_ARG} {BASE}\n")
        self.put("etc/default/grub", 'GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX="rhgb quiet"\nGRUB_ENABLE_BLSCFG=true\n')
        self.put("proc/cmdline", f"BOOT_IMAGE=(hd0)/vmlinuz {ROOT_ARG} {BASE}\n")

    def put(self, path, text):
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    def get(self, path):
        return (self.root / path).read_text(encoding="utf-8")

    def entry(self, name, args):
        self.put(
            f"boot/loader/entries/{name}.conf",
            f"title Fedora\nversion {name}\nlinux /vmlinuz-{name}\ninitrd /i-{name}.img\noptions {ROOT_ARG} {args}\n",
        )

    def args(self, name):
        options = re.search(r"(?m)^options (.*)$", self.get(f"boot/loader/entries/{name}.conf"))
        return options.group(1).removeprefix(ROOT_ARG).strip()

    def files(self):
        return {
            str(path.relative_to(self.root)): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)
            for path in self.root.rglob("*")
            if path.is_file()
        }

    # The tools

    def run(self, command):
        self.calls.append(command)
        assert command[1] == "-i", "tools are run with an empty environment"
        tool, *options = command[4:]
        return getattr(self, tool.rpartition("/")[2].replace("-", "_") + "_tool")(options)

    def modinfo_tool(self, options):
        assert options[:2] == ["-F", "parm"]
        parameters = self.parameters.get(options[2])
        return (1, "", "not found") if parameters is None else (0, parameters, "")

    def grubby_tool(self, options):
        folder = self.root / "boot/loader/entries"
        names = [name for name in (NEW, OLD, RESCUE, "efi") if (folder / f"{name}.conf").exists()]
        if options == ["--info=ALL"]:
            if self.grubby == "no info":
                return 1, "", "grubby: broken"
            text = ""
            for index, name in enumerate(names):
                args = "" if name == "efi" else self.args(name)
                if self.grubby == "elsewhere":
                    args = BASE
                text += f'index={index}\nkernel="/boot/vmlinuz-{name}"\nargs="{args}"\nroot="UUID=7f1e"\nid="{name}"\n'
            return 0, text, ""
        assert options[0] == "--update-kernel=ALL"
        given = dict(option.split("=", 1) for option in options[1:])
        remove = given.get("--remove-args", "").split()
        add = given.get("--args", "").split()
        assert set(given) <= {"--remove-args", "--args"}
        if self.grubby == "silent":
            return 0, "", ""
        if self.grubby == "fails":
            (folder / f"{NEW}.conf").write_text("half", encoding="utf-8")
            return 1, "", "grubby: no space left on device"

        def change(line):
            for name in [*remove, *(token.split("=")[0] for token in add)]:
                line = re.sub(rf"(^|\s){name}((\s|$)|(=[^ ]*))", " ", " ".join(line.split()))
            if self.grubby == "harms":
                line = line.replace("rhgb", "")
            return " ".join([*line.split(), *add])

        for name in names[: 1 if self.grubby == "first only" else None]:
            path = folder / f"{name}.conf"
            text = path.read_text(encoding="utf-8")
            path.write_text(
                re.sub(r"(?m)^options (.*)$", lambda m: "options " + change(m.group(1)), text), encoding="utf-8"
            )
        self.put("etc/kernel/cmdline", change(self.get("etc/kernel/cmdline")) + "\n")
        if (self.root / "etc/default/grub").exists():
            text = self.get("etc/default/grub")
            variable = re.compile(r'(?m)^GRUB_CMDLINE_LINUX="(.*)"$')
            text = variable.sub(lambda m: f'GRUB_CMDLINE_LINUX="{change(m.group(1))}"', text)
            self.put("etc/default/grub", text)
        return 0, "", ""

    def rpm_ostree_tool(self, options):
        assert options[0] == "kargs"
        if len(options) == 1:
            return 0, self.ostree + "\n", ""
        assert options[1] == "--unchanged-exit-77"
        if self.ostree_rc:
            return self.ostree_rc, "", "error: Transaction in progress"
        tokens = self.ostree.split()
        for option in options[2:]:
            kind, _equals, token = option.partition("=")
            if kind == "--delete-if-present" and token in tokens:
                tokens.remove(token)
            elif kind == "--append-if-missing" and token not in tokens:
                tokens.append(token)
        unchanged = tokens == self.ostree.split()
        self.ostree = " ".join(tokens)
        return (77 if unchanged else 0), "", ""

    # The module

    def __call__(self, arguments=None, absent=(), check=False, method="auto"):
        machine = self
        given = {"arguments": arguments or {}, "absent": list(absent), "method": method}
        self.calls = []
        self.warnings = []

        class FakeModule:
            params = given
            check_mode = check
            tmpdir = str(machine.root.parent)

            def __init__(self, argument_spec, supports_check_mode):
                assert supports_check_mode

            def get_bin_path(self, name, required=False, opt_dirs=()):
                return f"/usr/bin/{name}" if name == "env" or name in machine.tools else None

            def run_command(self, command):
                return machine.run(command)

            def atomic_move(self, source, destination):
                # Like the real one, it keeps the mode of what was there.
                place = Path(destination)
                Path(source).chmod(place.stat().st_mode if place.exists() else 0o644)
                shutil.move(source, destination)

            def warn(self, text):
                machine.warnings.append(text)

            def exit_json(self, **result):
                raise Exit(result)

            def fail_json(self, **result):
                raise Exit({"failed": True, **result})

        kernel_args.AnsibleModule = FakeModule
        with pytest.raises(Exit) as ended:
            kernel_args.main()
        return ended.value.result

    def refuses(self, *words, **options):
        """The run fails, says these words, and every file is as it was, times included."""
        before = self.files()
        result = self(**options)
        assert result.get("failed"), result
        for word in words:
            assert word in result["msg"], result["msg"]
        assert self.files() == before

    def writes(self):
        return [call[4:] for call in self.calls if "--update-kernel=ALL" in call or "--unchanged-exit-77" in call]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(kernel_args, "ROOT", root)
    monkeypatch.setattr(kernel_args, "AnsibleModule", kernel_args.AnsibleModule)
    return Machine(root)


STORES = [f"entry {NEW}", f"entry {OLD}", f"entry {RESCUE}", "/etc/kernel/cmdline", "/etc/default/grub"]


def test_every_store_is_set_by_one_call_and_the_next_run_changes_nothing(machine):
    foreseen = machine(PAGES, check=True)
    assert foreseen["changed"]
    assert foreseen["reboot_required"]
    assert list(foreseen["before"]) == STORES
    assert machine.writes() == []

    done = machine(PAGES)
    assert machine.writes() == [["/usr/bin/grubby", "--update-kernel=ALL", f"--args={WANTED}"]]
    assert {key: done[key] for key in done if key != "running"} == {
        key: foreseen[key] for key in foreseen if key != "running"
    }
    for name in (NEW, OLD, RESCUE):
        assert machine.args(name) == f"{BASE} {WANTED}"
    assert machine.get("etc/kernel/cmdline") == f"{ROOT_ARG} {BASE} {WANTED}\n"
    assert f'\nGRUB_CMDLINE_LINUX="rhgb quiet {WANTED}"\n' in machine.get("etc/default/grub")

    before = machine.files()
    again = machine(PAGES)
    assert not again["changed"]
    assert again["diff"] == []
    assert again["commands"] == []
    assert again["reboot_required"], "the running kernel still has the old arguments"
    assert machine.files() == before, "a settled host is not written to"


def test_the_diff_names_only_the_entries_that_differ(machine):
    machine(PAGES)
    machine.entry(OLD, f"{BASE} ttm.pages_limit=12288000")
    diff = machine(PAGES, check=True)["diff"]
    assert [part["before_header"] for part in diff] == [f"entry {OLD}"]
    assert "ttm.pages_limit=12288000\n" in diff[0]["before"]
    assert f"{WANTED}\n" in diff[0]["after"]


@pytest.mark.parametrize(
    "args",
    [
        "ro ttm.pages_limit=1",
        "ro ttm.pages_limit=29360128 ttm.pages_limit=29360128",
        "ro ttm.pages_limit=29360128 ttm.pages-limit=29360128",
        "ro",
        "ro ttm.pages_limit",
    ],
)
@pytest.mark.parametrize("store", ["new", "old", "rescue", "cmdline", "grub"])
def test_one_store_that_differs_by_hand_is_put_right(machine, store, args):
    machine(PAGES)
    if store == "cmdline":
        machine.put("etc/kernel/cmdline", f"{ROOT_ARG} {args}\n")
    elif store == "grub":
        machine.put("etc/default/grub", f'GRUB_CMDLINE_LINUX="{args}"\n')
    else:
        machine.entry({"new": NEW, "old": OLD, "rescue": RESCUE}[store], args)
    assert machine(PAGES)["changed"]
    assert not machine(PAGES)["changed"]
    assert all(line.split().count(WANTED) == 1 for line in machine(PAGES)["after"].values())
    assert not any("ttm.pages-limit" in line for line in machine(PAGES)["after"].values())


def test_foreign_remnants_are_taken_out_and_the_rest_stays(machine):
    remnants = "amdttm.pages_limit=5 amdgpu.gtt_size=7 quiet quiet amdgpu.gttsize=49152"
    machine.entry(OLD, f"ro console=tty0 {remnants} console=ttyS0,115200 x")
    result = machine(PAGES, ["amdttm.*", "amdgpu.gttsize", "amdgpu.gtt_size", "quiet"])
    assert machine.args(OLD) == f"ro console=tty0 console=ttyS0,115200 x {WANTED}"
    assert result["writer"] == "grubby"
    assert not machine(PAGES, ["amdttm.*", "amdgpu.gttsize", "amdgpu.gtt_size", "quiet"])["changed"]


def test_absent_alone(machine):
    assert machine(absent=["quiet"])["changed"]
    assert machine.args(NEW) == "ro rootflags=subvol=root rhgb"
    assert not machine(absent=["quiet"])["changed"]


@pytest.mark.parametrize(
    "args",
    [
        'ro dyndbg="file drivers/gpu/*  +p"',
        "ro a=b&c",
        r"ro a=\x20b",
        "ro ttmXpages_limit=3",
        'ro a="x ttm.pages_limit=1 y"',
    ],
)
def test_what_grubby_would_harm_is_written_without_it(machine, args):
    machine.entry(OLD, f"{args} ttm.pages_limit=5")
    foreseen = machine(PAGES, check=True)
    result = machine(PAGES)
    assert result["after"] == foreseen["after"]
    assert result["writer"] == foreseen["writer"] == "files"
    assert machine.writes() == []
    assert f"entry {OLD}" in machine.warnings[0]
    assert machine.args(OLD) == f"{args} {WANTED}"
    assert machine.args(NEW) == f"{BASE} {WANTED}"
    again = machine(PAGES)
    assert not again["changed"]
    assert machine.warnings == []


def test_arguments_for_init_stay_behind_the_dashes(machine):
    machine.entry(OLD, "ro -- single")
    machine(PAGES)
    assert machine.args(OLD) == f"ro {WANTED} -- single"


def test_quotes_in_default_grub_survive(machine):
    text = 'A=1\nGRUB_CMDLINE_LINUX="a=\\"b c\\" ttm.pages_limit=1"\nGRUB_CMDLINE_LINUX_DEFAULT="splash"\n'
    machine.put("etc/default/grub", text)
    machine(PAGES)
    assert machine.get("etc/default/grub") == text.replace("ttm.pages_limit=1", WANTED)
    grub, cmdline = (machine.root / name for name in ("etc/default/grub", "etc/kernel/cmdline"))
    assert grub.stat().st_mtime_ns <= cmdline.stat().st_mtime_ns, "else the next kernel rewrites all entries"


def test_a_missing_cmdline_is_made_from_the_newest_entry(machine):
    (machine.root / "etc/kernel/cmdline").unlink()
    machine.entry(NEW, "ro newest $tuned_params")
    foreseen = machine(PAGES, check=True)
    assert foreseen["before"]["/etc/kernel/cmdline"] is None
    assert not (machine.root / "etc/kernel/cmdline").exists()
    machine(PAGES)
    assert machine.get("etc/kernel/cmdline") == f"{ROOT_ARG} ro newest {WANTED}\n"
    assert foreseen["after"]["/etc/kernel/cmdline"] == f"{ROOT_ARG} ro newest {WANTED}"


def test_default_grub_is_not_made_where_it_is_missing(machine):
    (machine.root / "etc/default/grub").unlink()
    assert list(machine(PAGES)["after"]) == STORES[:-1]
    assert not (machine.root / "etc/default/grub").exists()


def test_an_empty_default_grub_gets_the_arguments(machine):
    machine.put("etc/default/grub", 'GRUB_CMDLINE_LINUX=""\n')
    machine(PAGES)
    assert machine.get("etc/default/grub") == f'GRUB_CMDLINE_LINUX="{WANTED}"\n'


def test_entries_that_start_no_kernel_are_left_alone(machine):
    machine.put("boot/loader/entries/efi.conf", "title Shell\nefi /shell.efi\n")
    result = machine(PAGES)
    assert result["changed"]
    assert list(result["after"]) == STORES


@pytest.mark.parametrize("fault", ["silent", "first only", "harms", "fails", "elsewhere"])
def test_a_write_that_did_not_take_is_a_failure_and_everything_is_put_back(machine, fault):
    machine.grubby = fault
    word = {
        "silent": "after grubby reported success",
        "first only": f"entry {OLD}",
        "harms": "none of its business",
        "fails": "no space left",
        "elsewhere": "--info=ALL shows other arguments",
    }[fault]
    machine.refuses(word, arguments=PAGES)


def test_a_failure_takes_back_the_file_that_was_made(machine):
    (machine.root / "etc/kernel/cmdline").unlink()
    machine.grubby = "fails"
    machine.refuses("no space left", arguments=PAGES)
    assert not (machine.root / "etc/kernel/cmdline").exists()


def test_no_boot_entry(machine):
    shutil.rmtree(machine.root / "boot/loader/entries")
    machine.refuses("lists no boot entry", arguments=PAGES)
    machine.refuses("lists no boot entry", arguments=PAGES, check=True)


def test_grubby_that_cannot_list(machine):
    machine.grubby = "no info"
    machine.refuses("ended with 1", "grubby: broken", arguments=PAGES)


def test_grubby_not_installed(machine):
    machine.tools.remove("grubby")
    machine.refuses("grubby is not installed", arguments=PAGES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("title x\noptions ro\n", ["is broken", "no line 'linux'"]),
        ("title x\nlinux /v\n", ["is broken", "0 lines 'options'"]),
        ("title x\nlinux /v\noptions ro\noptions quiet\n", ["is broken", "2 lines 'options'"]),
    ],
)
def test_a_broken_entry(machine, content, words):
    machine.put(f"boot/loader/entries/{OLD}.conf", content)
    machine.args = lambda name: BASE
    machine.refuses(OLD, *words, arguments=PAGES)


def test_an_entry_that_is_no_text(machine):
    path = machine.root / f"boot/loader/entries/{OLD}.conf"
    path.write_bytes(b"linux /v\noptions \xff\n")
    machine.args = lambda name: BASE
    machine.refuses("is broken", "cannot be read", arguments=PAGES)


def test_default_grub_that_only_a_shell_could_tell(machine):
    machine.put("etc/default/grub", 'GRUB_CMDLINE_LINUX="$(cat /proc/cmdline)"\n')
    machine.refuses("etc/default/grub", "computed by the shell", arguments=PAGES)


@pytest.mark.parametrize("place", ["boot", "etc/kernel", "etc/default"])
@pytest.mark.parametrize("check", [False, True])
def test_a_place_that_cannot_be_written(machine, monkeypatch, place, check):
    real = os.access

    def access(path, mode):
        return False if f"/root/{place}" in str(path) and mode == os.W_OK else real(path, mode)

    monkeypatch.setattr(kernel_args.os, "access", access)
    machine.refuses("cannot be written", "nothing was changed", arguments=PAGES, check=check)
    assert machine.writes() == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"console": "tty0"}, "several times"),
        ({"a b": 1}, "regular expression"),
        ({"a": "b&c"}, "'&'"),
        ({"amdgpu.gtt_size": 1}, "amdgpu.gttsize"),
        ({"ttm.pages": 1}, "it has page_pool_size, pages_limit"),
        ({}, "nothing to do"),
    ],
)
def test_bad_input(machine, arguments, word):
    machine.refuses(word, arguments=arguments)


def test_a_module_that_this_kernel_does_not_have_is_no_reason_to_refuse(machine):
    assert machine({"systemd.unit": "rescue.target"})["changed"]


def test_kernelopts_of_grubenv_with_what_grubby_would_harm(machine):
    machine.put(f"boot/loader/entries/{OLD}.conf", "title x\nlinux /v\noptions $kernelopts\n")
    machine.entry(NEW, "ro a=b&c")
    machine.refuses("$kernelopts", "nothing was changed", arguments=PAGES)


def test_reboot_required_goes_by_the_running_kernel_alone(machine):
    machine.put("proc/cmdline", f"ro {WANTED}\n")
    result = machine(PAGES)
    assert result["changed"]
    assert not result["reboot_required"]
    assert result["running"] == [WANTED]
    result = machine(PAGES, ["quiet"])
    assert not result["reboot_required"]


def test_modprobe_options_that_disagree_are_named(machine):
    machine.put("etc/modprobe.d/ttm.conf", "options ttm pages_limit=5\noptions amdgpu gttsize=7\noptions amdgpu dc=1\n")
    machine.put("usr/lib/modprobe.d/same.conf", "options ttm pages_limit=29360128\n")
    result = machine(PAGES, ["amdgpu.gttsize"])
    assert [(item["name"], item["value"]) for item in result["modprobe"]] == [
        ("ttm.pages_limit", "5"),
        ("amdgpu.gttsize", "7"),
        ("ttm.pages_limit", "29360128"),
    ]
    assert len(machine.warnings) == 2
    assert "wins over it" in machine.warnings[0]
    assert "dracut" in machine.warnings[1]


@pytest.fixture
def ostree(machine):
    machine.put("run/ostree-booted", "")
    machine.tools = {"rpm-ostree"}
    machine.ostree = "root=UUID=1 rw ttm.pages_limit=1 ttm.pages_limit=1 amdttm.pages_limit=2"
    return machine


def test_ostree(ostree):
    foreseen = ostree(PAGES, ["amdttm.*"], check=True)
    assert foreseen["changed"]
    assert ostree.writes() == []
    result = ostree(PAGES, ["amdttm.*"])
    assert result["method"] == "rpm-ostree"
    assert result["changed"]
    assert result["after"] == foreseen["after"] == {"pending deployment": f"root=UUID=1 rw {WANTED}"}
    assert len(ostree.writes()) == 1
    again = ostree(PAGES, ["amdttm.*"])
    assert not again["changed"]
    assert ostree.writes() == []


def test_ostree_refusals(ostree):
    ostree.ostree_rc = 1
    ostree.refuses("Transaction in progress", arguments=PAGES)
    ostree.ostree_rc = 77  # nothing to change, it says, and nothing is right
    ostree.refuses("ended with 77", "not as wanted", arguments=PAGES)
    ostree.ostree = ""
    ostree.refuses("no arguments", arguments=PAGES)
    ostree.tools = set()
    ostree.refuses("rpm-ostree is not installed", arguments=PAGES)


@pytest.fixture
def image(machine):
    shutil.rmtree(machine.root / "boot/loader")
    (machine.root / "usr/lib/bootc").mkdir(parents=True)
    machine.tools = set()
    return machine


@pytest.mark.skipif(sys.version_info < (3, 11), reason="bootc images have Python 3.13 or newer; tomllib came with 3.11")
class TestBootcImage:
    own = "usr/lib/bootc/kargs.d/60-llamafleet.toml"

    def test_the_arguments_become_a_file_of_the_image(self, image):
        foreseen = image(PAGES, check=True)
        assert not (image.root / self.own).exists()
        result = image(PAGES)
        assert result["method"] == "bootc"
        assert result["changed"]
        assert result["after"] == foreseen["after"]
        assert not result["reboot_required"]
        assert f'\nkargs = ["{WANTED}"]\n' in image.get(self.own)
        assert not image(PAGES)["changed"]
        assert image({"ttm.pages_limit": 5, "quiet": None})["changed"]
        assert '\nkargs = ["ttm.pages_limit=5", "quiet"]\n' in image.get(self.own)

    def test_another_file_of_the_image_that_sets_the_same(self, image):
        image.put("usr/lib/bootc/kargs.d/10-other.toml", 'kargs = ["ttm.pages_limit=5"]\n')
        image.refuses("10-other.toml", "ttm.pages_limit=5", arguments=PAGES)

    @pytest.mark.parametrize("text", ["kargs = [", "kargs = 5\n", "kargs = [5]\n"])
    def test_a_file_that_cannot_be_read(self, image, text):
        image.put(self.own, text)
        image.refuses("60-llamafleet.toml", arguments=PAGES)
