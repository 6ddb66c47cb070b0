# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _kernel_args as ka
from hypothesis import given
from hypothesis import strategies as st

# The shape of `grubby --info=ALL` of grubby 8.40-69 with /boot on a partition of its own: no blank
# lines, root= apart, quotes inside args as they are, the rescue entry last.
INFO = """\
index=0
kernel="/boot/vmlinuz-6.18.9-200.fc43.x86_64"
args="ro rhgb quiet dyndbg="file drivers/gpu +p" $tuned_params"
root="UUID=7f1e"
initrd="/boot/initramfs-6.18.9-200.fc43.x86_64.img $tuned_initrd"
title="Fedora Linux (6.18.9-200.fc43.x86_64) 43 "Server""
id="4c5f-6.18.9-200.fc43.x86_64"
index=1
kernel="/boot/vmlinuz-0-rescue-4c5f"
args="ro ttm.pages_limit=1"
root="UUID=7f1e"
initrd="/boot/initramfs-0-rescue-4c5f.img"
title="Fedora Linux (0-rescue-4c5f) 43"
id="4c5f-0-rescue"
"""

PAGES = ka.wanted_state({"ttm.pages_limit": 29360128})


def test_parse_info_reads_every_entry():
    assert ka.parse_info(INFO) == [
        ka.Entry(
            "0",
            "4c5f-6.18.9-200.fc43.x86_64",
            'Fedora Linux (6.18.9-200.fc43.x86_64) 43 "Server"',
            "/boot/vmlinuz-6.18.9-200.fc43.x86_64",
            'ro rhgb quiet dyndbg="file drivers/gpu +p" $tuned_params',
        ),
        ka.Entry(
            "1",
            "4c5f-0-rescue",
            "Fedora Linux (0-rescue-4c5f) 43",
            "/boot/vmlinuz-0-rescue-4c5f",
            "ro ttm.pages_limit=1",
        ),
    ]


@pytest.mark.parametrize("output", ["", "\n", "no entry here\n"])
def test_parse_info_of_nothing(output):
    assert ka.parse_info(output) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ro  quiet\t a=1\n", ["ro", "quiet", "a=1"]),
        ('a="b c" d', ['a="b c"', "d"]),
        ('"a=b c" d', ['"a=b c"', "d"]),
        ('a="open  ended', ['a="open  ended']),  # the kernel, too, takes it to the end of the line
        ("", []),
    ],
)
def test_split_args(line, expected):
    assert ka.split_args(line) == expected


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("quiet", "quiet"),
        ("ttm.pages_limit=5", "ttm.pages_limit"),
        ("ttm.pages-limit=5", "ttm.pages_limit"),
        ('"ttm.pages_limit=5"', "ttm.pages_limit"),
        ("crashkernel=1G-4G:192M", "crashkernel"),
    ],
)
def test_arg_name(token, name):
    assert ka.arg_name(token) == name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ro ttm.pages_limit=29360128", True),
        ("ttm.pages_limit=29360128 ro", True),
        ("ro ttm.pages_limit=5", False),
        ("ttm.pages_limit=29360128 ttm.pages_limit=29360128", False),
        ("ttm.pages_limit=5 ttm.pages_limit=29360128", False),  # right by accident of order
        ("ttm.pages-limit=29360128", False),  # the kernel takes it, but a later change would not find it
        ("ttm.pages_limit", False),
        ("amdttm.pages_limit=29360128", False),
        ("ttmXpages_limit=29360128", False),
        ('"ttm.pages_limit=29360128"', False),
        ("ro -- ttm.pages_limit=29360128", False),  # goes to init
        ("ttm.pages_limit=29360128 -- ttm.pages_limit=1", True),
        ("", False),
    ],
)
def test_settled(line, expected):
    assert ka.settled(ka.split_args(line), PAGES) is expected


def test_settled_wants_flags_without_value_and_unwanted_names_gone():
    wanted = ka.wanted_state({"quiet": None}, ["amdttm.*", "amdgpu.gttsize"])
    assert ka.settled(["quiet", "ttm.pages_limit=5"], wanted)
    assert not ka.settled(["quiet=1"], wanted)
    assert not ka.settled(["quiet", "amdttm.page_pool_size=5"], wanted)
    assert not ka.settled(["quiet", "amdgpu.gttsize=5"], wanted)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("console=tty0 ttm.pages_limit=1 console=ttyS0", "console=tty0 console=ttyS0 ttm.pages_limit=29360128"),
        ('a="x  ttm.pages_limit=1 y"', 'a="x  ttm.pages_limit=1 y" ttm.pages_limit=29360128'),
        ("ro -- single", "ro ttm.pages_limit=29360128 -- single"),
        ("", "ttm.pages_limit=29360128"),
    ],
)
def test_applied(line, expected):
    assert " ".join(ka.applied(ka.split_args(line), PAGES)) == expected


WORDS = st.lists(
    st.sampled_from(
        [
            "ro",
            "quiet",
            "quiet=1",
            "console=tty0",
            "console=ttyS0,115200",
            "ttm.pages_limit=1",
            "ttm.pages_limit=29360128",
            "ttm.pages-limit=2",
            "ttmXpages_limit=3",
            "amdttm.pages_limit=4",
            "amdgpu.gttsize=5",
            'dyndbg="file x +p"',
            'p="  ttm.pages_limit=1 quiet "',
            "f=a&b",
            "$tuned_params",
            "--",
        ]
    ),
    max_size=9,
)
GENERAL = ka.wanted_state({"ttm.pages_limit": 29360128, "quiet": None}, ["amdttm.*", "amdgpu.gttsize"])


@given(WORDS)
def test_applied_settles_and_keeps_the_rest(tokens):
    after = ka.applied(tokens, GENERAL)
    assert ka.settled(after, GENERAL)
    assert ka.applied(after, GENERAL) == after
    end = tokens.index("--") if "--" in tokens else len(tokens)
    foreign = [token for token in tokens[:end] if not GENERAL.governs(token)]
    assert after == [*foreign, *GENERAL.tokens(), *tokens[end:]]
    assert ka.split_args(" ".join(after)) == after


@given(WORDS)
def test_a_line_that_grubby_may_write_comes_out_as_wanted_or_is_seen_to_differ(tokens):
    """The module goes by this comparison: grubby only where its result equals what is wanted."""
    line = " ".join(tokens)
    result = ka.grubby_result(line, ka.grubby_removals([line], GENERAL), GENERAL.tokens())
    spoiled = ka.grubby_spoils(line) is not None or "--" in tokens or "ttmXpages_limit=3" in tokens
    if not spoiled and 'p="  ttm.pages_limit=1 quiet "' not in tokens:
        assert ka.split_args(result) == ka.applied(tokens, GENERAL)


@pytest.mark.parametrize(
    ("line", "remove", "add", "expected"),
    [
        # Observed with the real script, 8.40-69.
        ("ro ttm.pages_limit=1 quiet", [], ["ttm.pages_limit=2"], "ro quiet ttm.pages_limit=2"),
        ("console=tty0 console=ttyS0", [], ["console=tty1"], "console=tty1"),
        ("ttmXpages_limit=1 ro", [], ["ttm.pages_limit=2"], "ro ttm.pages_limit=2"),  # a dot is any character
        ("amd_iommu=off iommu=pt", ["iommu"], [], "amd_iommu=off"),
        ("quiet quiet ro", ["quiet"], [], "quiet ro"),  # the blank between the two was eaten
        ("quiet quiet ro", ["quiet", "quiet"], [], "ro"),
        ('a="x y" a=1', ["a"], [], 'y"'),  # it knows no quotes
    ],
)
def test_grubby_result(line, remove, add, expected):
    assert ka.grubby_result(line, remove, add) == expected


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a=b&c", "&"),
        (r"a=\x20", "\\"),
        ("a=*.c", "*"),
        ("a=[b]", "["),
        ('a="b  c"', "blanks"),
    ],
)
def test_grubby_spoils(line, what):
    assert what in str(ka.grubby_spoils(f"ro {line} quiet"))


@pytest.mark.parametrize("line", ['a="b c"', "$tuned_params ro", "root=/dev/mapper/fedora-root", "a=1:2,3"])
def test_grubby_spares(line):
    assert ka.grubby_spoils(line) is None


@pytest.mark.parametrize(
    ("arguments", "absent", "words"),
    [
        ({"a b": 1}, [], ["'a b'", "regular expression"]),
        ({"ttm.*": 1}, [], ["'ttm.*'", "regular expression"]),
        ({"a&b": 1}, [], ["'a&b'"]),
        ({"": 1}, [], ["''"]),
        ({7: 1}, [], ["7"]),
        ({"a": "x y"}, [], ["'x y'", "' '"]),
        ({"a": 'x"y'}, [], ["'\"'"]),
        ({"a": "x&y"}, [], ["'&'"]),
        ({"a": "$(x)"}, [], ["'$'"]),
        ({"a": True}, [], ["boolean", "quote"]),
        ({"a": [1]}, [], ["list"]),
        ({"a": ""}, [], ["null"]),
        ({"console": "tty0"}, [], ["several times", "console"]),
        ({}, ["console"], ["several times"]),
        ({"root": "UUID=1"}, [], ["root", "boot loader"]),
        ({"amdgpu.gtt_size": 1}, [], ["amdgpu.gttsize"]),
        ({"amdttm.pages_limit": 1}, [], ["ttm.pages_limit"]),
        ({"a-b": 1, "a_b": 1}, [], ["one name"]),
        ({"ttm.pages_limit": 1}, ["ttm.*"], ["ttm.pages_limit", "cannot be both"]),
        ({"a": 1}, ["a"], ["cannot be both"]),
        ({}, [".*"], ["''"]),
        ({}, [], ["nothing to do"]),
    ],
)
def test_wanted_state_refuses(arguments, absent, words):
    with pytest.raises(ValueError, match=r".") as refusal:
        ka.wanted_state(arguments, absent)
    for word in words:
        assert word in str(refusal.value)


def test_wanted_state_takes_numbers_text_and_flags():
    wanted = ka.wanted_state({"a": 1, "b": "x,y:z/w=1", "c": None}, ["d", "d", "e.*"])
    assert wanted.tokens() == ["a=1", "b=x,y:z/w=1", "c"]
    assert wanted.absent == ("d", "e.*")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('GRUB_CMDLINE_LINUX="rhgb quiet"\n', "rhgb quiet"),
        ("GRUB_CMDLINE_LINUX=quiet # silence\n", "quiet"),
        ("GRUB_CMDLINE_LINUX='a=\"b c\" $x'\n", 'a="b c" $x'),
        ('GRUB_CMDLINE_LINUX="a=\\"b c\\" \\$x"\n', 'a="b c" $x'),
        ('GRUB_CMDLINE_LINUX="one"\nGRUB_CMDLINE_LINUX="two"\n', "two"),
        ('#GRUB_CMDLINE_LINUX="no"\nGRUB_TIMEOUT=5\n', ""),
        ('GRUB_CMDLINE_LINUX_DEFAULT="no"\n', ""),
    ],
)
def test_default_grub_value(text, expected):
    assert ka.default_grub_value(text) == expected


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('GRUB_CMDLINE_LINUX="$(cat /proc/cmdline)"', "computed"),
        ("GRUB_CMDLINE_LINUX=`uname`", "computed"),
        ('GRUB_CMDLINE_LINUX="$OTHER quiet"', "computed"),
        ('GRUB_CMDLINE_LINUX="open', "no complete"),
        ("GRUB_CMDLINE_LINUX=quiet;reboot", "bare ;"),
        ('GRUB_CMDLINE_LINUX="quiet \\', "next line"),
        ("GRUB_CMDLINE_LINUX=ro quiet", "runs the rest"),
        ('GRUB_CMDLINE_LINUX+=" quiet"', "appends"),
    ],
)
def test_default_grub_value_refuses(line, word):
    with pytest.raises(ValueError, match=word):
        ka.default_grub_value(f"GRUB_TIMEOUT=5\n{line}\n")


@given(st.text(alphabet='ab= "\\$`&*;#', max_size=12).map(lambda text: " ".join(text.split())))
def test_default_grub_is_written_so_that_it_reads_back(value):
    text = 'A=1\nGRUB_CMDLINE_LINUX="old"\nGRUB_CMDLINE_LINUX_DEFAULT="keep"\n'
    written = ka.with_default_grub_value(text, value)
    assert ka.default_grub_value(written) == value
    assert written.replace(written.splitlines()[1], 'GRUB_CMDLINE_LINUX="old"') == text


def test_default_grub_is_read_as_a_shell_reads_it():
    """A real shell judges both directions."""
    values = ["", "a", 'a="b c"', "$x", "`y`", "\\\\", "a\\b", "it's", "a  b", "&;|<>()*?[]#", '"', "\\$", '\\"x']
    raws = ["'a b'", '"a\\b"', '"a\\\\b"', "a\\ b", "\"a\"b'c'", "a#b", '"x" # y', "''", '"\\\\\\$"']
    lines = [ka.with_default_grub_value("", value).strip() for value in values]
    lines += [f"GRUB_CMDLINE_LINUX={raw}" for raw in raws]
    script = "".join(f'{line}\nprintf "%s\\0" "$GRUB_CMDLINE_LINUX"\n' for line in lines)
    told = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
    assert told[: len(values)] == values
    assert told == [ka.default_grub_value(line + "\n") for line in lines]


def test_default_grub_without_the_variable_gets_it():
    assert ka.with_default_grub_value("A=1", "quiet") == 'A=1\nGRUB_CMDLINE_LINUX="quiet"\n'


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('GRUB_CMDLINE_LINUX="a=\\"b c\\""\n', "quotes"),
        ('GRUB_CMDLINE_LINUX="ro"\nGRUB_CMDLINE_LINUX_DEFAULT="x"\n', "GRUB_CMDLINE_LINUX_DEFAULT"),
        ('GRUB_CMDLINE_LINUX="a=b&c"\n', "&"),
    ],
)
def test_default_grub_spoils(text, word):
    assert word in str(ka.default_grub_spoils(text))


ENTRY = "title Fedora\nversion 6\nlinux /vmlinuz-6\noptions root=UUID=1 ro  a=b \nid x\n"


def test_entry_options():
    assert ka.entry_options(ENTRY) == ["root=UUID=1 ro  a=b"]
    assert ka.without_root("root=UUID=1 ro root=2") == "ro root=2"
    assert ka.with_entry_options(ENTRY, r"ro x=\1&") == ENTRY.replace("root=UUID=1 ro  a=b ", r"ro x=\1&")
    assert ka.entry_is_linux(ENTRY)
    assert not ka.entry_is_linux("title x\nefi /shell.efi\n")
    assert ka.entry_is_efi_program("title x\nefi /shell.efi\n")


def test_future_cmdline_leaves_the_entries_variables_out():
    assert ka.future_cmdline("root=UUID=1 ro $tuned_params quiet") == "root=UUID=1 ro quiet"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ro ttm.pages_limit=29360128", []),
        ("ro", ["--append-if-missing=ttm.pages_limit=29360128"]),
        (
            "ttm.pages_limit=1 ttm.pages-limit=2 ro",
            [
                "--delete-if-present=ttm.pages_limit=1",
                "--delete-if-present=ttm.pages-limit=2",
                "--append-if-missing=ttm.pages_limit=29360128",
            ],
        ),
        (
            "ttm.pages_limit=29360128 ttm.pages_limit=29360128",
            [
                "--delete-if-present=ttm.pages_limit=29360128",
                "--delete-if-present=ttm.pages_limit=29360128",
                "--append-if-missing=ttm.pages_limit=29360128",
            ],
        ),
    ],
)
def test_ostree_options(line, expected):
    assert ka.ostree_options(ka.split_args(line), PAGES) == expected


def test_modprobe_options():
    text = (
        "# options ttm pages_limit=1\noptions ttm pages_limit=2 \\\n  page_pool_size=3 # four\nalias a b\noptions x\n"
    )
    assert ka.modprobe_options(text) == [("ttm.pages_limit", "2"), ("ttm.page_pool_size", "3")]


def test_modinfo_parameters():
    assert ka.modinfo_parameters("pages_limit:Limit (ulong)\npage-pool:x (int)\n\n") == {"pages_limit", "page_pool"}
