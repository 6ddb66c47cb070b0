# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel command lines as text: split, compare, change, and foresee what grubby makes of them.

Private to the collection: it may change at any time and is not for use from elsewhere.
No Ansible imports, nothing here reads or writes a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The kernel's own names have only these characters. Anything else would be a regular expression to
# grubby, which puts the name unescaped into sed.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
# grubby hands values through unquoted shell words, sed replacements and a sourced shell file:
# blanks, quotes, & \ $ ` and the shell's patterns do not come out as they went in.
VALUE = re.compile(r"[A-Za-z0-9_.,:=+@%/~^\-]+")

# Each may stand several times on one command line and means something each time, whereas this
# module keeps every name it is given exactly once.
REPEATABLE = frozenset(
    {
        "console",
        "earlycon",
        "ifname",
        "ip",
        "memmap",
        "nameserver",
        "rd.driver.blacklist",
        "rd.driver.pre",
        "rd.luks.name",
        "rd.luks.options",
        "rd.luks.uuid",
        "rd.lvm.lv",
        "rd.md.uuid",
        "rd.route",
        "systemd.mask",
        "systemd.setenv",
        "systemd.wants",
    }
)
# What the boot loader or the installer owns; grubby lists root= apart from the other arguments.
BOOT_LOADERS_OWN = frozenset({"BOOT_IMAGE", "initrd", "root"})

# Names that guides hand on although the driver in Fedora's kernel has no such parameter: it ignores
# them without a word.
UNKNOWN_TO_THE_KERNEL = {
    "amdgpu.gtt_size": "amdgpu has no such parameter; the right name is amdgpu.gttsize (in MiB), "
    "or ttm.pages_limit (in pages of 4 KiB) alone",
    "amdttm.": "the prefix amdttm belongs to AMD's out-of-tree module; Fedora's kernel has it as ttm, "
    "so the right name is ttm.{rest}",
}


@dataclass(frozen=True)
class Wanted:
    """What shall stand on every command line, and what shall not."""

    arguments: Mapping[str, str | None]
    absent: tuple[str, ...] = ()

    def tokens(self) -> list[str]:
        return [name if value is None else f"{name}={value}" for name, value in self.arguments.items()]

    def summary(self) -> str:
        return "; ".join([*self.tokens(), *(f"no {name}" for name in self.absent)])

    def governs(self, token: str) -> bool:
        """Say whether `token` carries a name that is wanted or unwanted here."""
        name = arg_name(token)
        return any(name == canonical(wanted) for wanted in self.arguments) or any(
            matches_absent(name, pattern) for pattern in self.absent
        )


def canonical(name: str) -> str:
    """The kernel takes `-` and `_` in a parameter's name for the same (`parameqn` in kernel/params.c)."""
    return name.replace("-", "_")


def matches_absent(name: str, pattern: str) -> bool:
    """Compare a canonical name with a name, or with all parameters of a module (`amdttm.*`)."""
    pattern = canonical(pattern)
    if pattern.endswith(".*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def arg_name(token: str) -> str:
    """Return the canonical name of one argument; the kernel lets quotes enclose all of it."""
    return canonical(token.lstrip('"').partition("=")[0].rstrip('"'))


def split_args(line: str) -> list[str]:
    """Split a command line as the kernel does: at blanks, except between double quotes."""
    tokens: list[str] = []
    current = ""
    quoted = False
    for char in line:
        if char == '"':
            quoted = not quoted
        if char.isspace() and not quoted:
            if current:
                tokens.append(current)
            current = ""
        else:
            current += char
    if current:
        tokens.append(current)
    return tokens


def _render(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        # YAML turns on, yes and true into one thing; the kernel's parameters do not.
        raise ValueError(
            f"{name}: {value} is a YAML boolean, and the kernel distinguishes 1, y, on and true: "
            f"quote the word the parameter takes, or give null for an argument without a value"
        )
    if isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(
            f"{name}: a {type(value).__name__} is no value of a kernel argument; give text, a number or null"
        )
    if not value:
        raise ValueError(
            f"{name}: an empty value would be written as '{name}='; give null for an argument without a value"
        )
    if not VALUE.fullmatch(value):
        wrong = sorted({char for char in value if not VALUE.fullmatch(char)})
        raise ValueError(
            f"{name}: the value {value!r} contains {' '.join(map(repr, wrong))}, which the boot loader's tools "
            f"do not hand through unharmed; letters, digits and _ . , : = + @ % / ~ ^ - are safe"
        )
    return str(value)


def _check_name(name: Any, what: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{what}: {name!r} is no name of a kernel argument: letters, digits, '_', '.' and '-' make one, "
            f"beginning with a letter or digit (to the boot loader's tools anything else is a regular expression)"
        )
    if name in REPEATABLE:
        raise ValueError(
            f"{what}: {name} may stand several times on one command line, and this module keeps each of its names "
            f"exactly once; leave {name} to the operating system's own tools"
        )
    if name in BOOT_LOADERS_OWN:
        raise ValueError(f"{what}: {name} belongs to the boot loader, which could not find the system without it")
    return name


def wanted_state(arguments: Mapping[Any, Any], absent: Iterable[Any] = ()) -> Wanted:
    """Check what a user asks for; ValueError names the entry, the rule and what would be right."""
    checked: dict[str, str | None] = {}
    seen: dict[str, str] = {}
    for raw, value in arguments.items():
        name = _check_name(raw, "arguments")
        for unknown, advice in UNKNOWN_TO_THE_KERNEL.items():
            if canonical(name).startswith(unknown):
                raise ValueError(f"arguments: {name}: {advice.format(rest=name[len(unknown) :])}")
        if canonical(name) in seen:
            raise ValueError(
                f"arguments: {name} and {seen[canonical(name)]} are one name to the kernel; keep one of them"
            )
        seen[canonical(name)] = name
        checked[name] = _render(name, value)
    unwanted: list[str] = []
    for raw in absent:
        _check_name(raw[:-2] if isinstance(raw, str) and raw.endswith(".*") else raw, "absent")
        clash = next((name for name in checked if matches_absent(canonical(name), raw)), None)
        if clash is not None:
            raise ValueError(f"absent: {raw} also stands for {clash}, which arguments asks for; it cannot be both")
        if raw not in unwanted:
            unwanted.append(raw)
    if not checked and not unwanted:
        raise ValueError("neither arguments nor absent names a kernel argument, so there is nothing to do")
    return Wanted(checked, tuple(unwanted))


def settled(tokens: Sequence[str], wanted: Wanted) -> bool:
    """Say whether each wanted argument stands once and with its value, and no unwanted one stands.

    What follows a lone `--` goes to init, not to the kernel.
    """
    end = tokens.index("--") if "--" in tokens else len(tokens)
    governed = [token for token in tokens[:end] if wanted.governs(token)]
    return sorted(governed) == sorted(wanted.tokens())


def applied(tokens: Sequence[str], wanted: Wanted) -> list[str]:
    """Return the command line as it shall be: everything else in its order, the wanted at the end."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    kept = [token for token in tokens[:end] if not wanted.governs(token)]
    return kept + wanted.tokens() + list(tokens[end:])


# ---------------------------------------------------------------------------------------------------
# grubby


@dataclass(frozen=True)
class Entry:
    """One boot entry of `grubby --info=ALL`."""

    index: str
    id: str
    title: str
    kernel: str
    args: str


def parse_info(output: str) -> list[Entry]:
    """Read every entry of `grubby --info=ALL`; `args` comes without `root=` and may hold quotes itself."""
    entries: list[Entry] = []
    fields: dict[str, str] = {}

    def close() -> None:
        if fields:
            entries.append(Entry(*(fields.get(key, "") for key in ("index", "id", "title", "kernel", "args"))))

    for line in output.splitlines():
        key, equals, value = line.partition("=")
        if not equals:
            continue
        if key == "index":
            close()
            fields = {}
        if len(value) >= 2 and value[0] == value[-1] == '"':
            # Only the outer pair is grubby's; quotes inside belong to the arguments.
            value = value[1:-1]
        fields[key] = value
    close()
    return entries


def shell_words(line: str) -> str:
    """What `echo $line` makes of it, when no word is a pattern that matches a file."""
    return " ".join(line.split())


def grubby_result(line: str, remove: Sequence[str], add: Sequence[str]) -> str:
    """Foresee what grubby's `update_args` makes of one command line.

    It knows no quotes, matches names as unescaped regular expressions, takes out each name of
    `remove` once over, then those of `add`, and appends `add`.
    """
    for name in [*remove, *(token.partition("=")[0] for token in add)]:
        line = re.sub(rf"(^|\s){name}((\s|$)|(=[^ ]*))", " ", shell_words(line))
    return shell_words(" ".join([line, *add]))


def grubby_spoils(line: str) -> str | None:
    """Name what grubby would not hand through unharmed on a line that it rewrites, or None."""
    for char, how in (
        ("&", "sed puts the old line in its place"),
        ("\\", "sed takes it for an escape"),
        ("*", "the shell takes it for a pattern of file names"),
        ("?", "the shell takes it for a pattern of file names"),
        ("[", "the shell takes it for a pattern of file names"),
    ):
        if char in line:
            return f"{char} ({how})"
    if any(shell_words(token) != token for token in split_args(line)):
        return "blanks inside quotes (the shell joins them)"
    return None


def grubby_removals(lines: Iterable[str], wanted: Wanted) -> list[str]:
    """Names to hand to --remove-args: every spelling found that is not exactly a wanted name.

    A flag that stands twice side by side needs a second pass, because grubby's expression eats the
    blank between the two; naming it twice gives one.
    """
    found: list[str] = []
    for line in lines:
        names: list[str] = []
        for token in split_args(line):
            name = token.partition("=")[0]
            if wanted.governs(token) and (name not in wanted.arguments or wanted.arguments[name] is None):
                names.append(name)
        for name in names:
            missing = names.count(name) - found.count(name)
            found.extend([name] * missing)
    # One pass for a wanted flag is grubby's own.
    for name, value in wanted.arguments.items():
        if value is None and name in found:
            found.remove(name)
    return found


# ---------------------------------------------------------------------------------------------------
# The stores as files


def entry_options(text: str) -> list[str]:
    """Return the `options` lines of a boot entry's file, without the keyword."""
    return [match.group(1) for match in re.finditer(r"(?m)^options[ \t]+(.*?)[ \t]*$", text)]


def entry_is_linux(text: str) -> bool:
    """An entry may start an EFI program instead of a kernel; kernel arguments mean nothing to it."""
    return re.search(r"(?m)^linux[ \t]+\S", text) is not None


def entry_is_efi_program(text: str) -> bool:
    return re.search(r"(?m)^(efi|uki)[ \t]+\S", text) is not None


def without_root(options: str) -> str:
    """grubby lists the first `root=` apart from the other arguments; so do we."""
    tokens = split_args(options)
    root = next((token for token in tokens if token.startswith("root=")), None)
    if root is not None:
        tokens.remove(root)
    return " ".join(tokens)


def with_entry_options(text: str, options: str) -> str:
    return re.sub(r"(?m)^options[ \t]+.*$", lambda _match: f"options {options}", text)


_CMDLINE_VARIABLE = re.compile(r"(?m)^[ \t]*(GRUB_CMDLINE_LINUX\w*\+?)=(.*)$")


def _shell_word(text: str) -> str:
    """Return what a shell assigns for `NAME=text`; ValueError where only a shell could tell."""
    word = ""
    quote = ""
    index = 0
    while index < len(text):
        char = text[index]
        index += 1
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                word += char
        elif char in "$`":
            raise ValueError("is computed by the shell, so its arguments cannot be told; write them out")
        elif char == "\\":
            following = text[index : index + 1]
            index += 1
            if not following:
                raise ValueError("goes on in the next line, which grubby does not read; write it in one")
            # Between double quotes a backslash is plain before anything but these.
            word += following if not quote or following in '"\\$`' else char + following
        elif quote:
            if char == '"':
                quote = ""
            else:
                word += char
        elif char in "'\"":
            quote = char
        elif char.isspace():
            rest = text[index:].strip()
            if rest and not rest.startswith("#"):
                raise ValueError(f"assigns {word!r} and runs the rest as a command; quote all of it")
            break
        elif char in ";&|<>()":
            raise ValueError(f"has a bare {char}, which ends the assignment for a shell; quote all of it")
        else:
            word += char
    if quote:
        raise ValueError("is no complete shell assignment: a quote is not closed")
    return word


def default_grub_value(text: str) -> str:
    """Return GRUB_CMDLINE_LINUX of /etc/default/grub, empty where it is not set.

    The file is shell that grub and grubby source; a value that only a shell could tell is refused,
    because writing it back would freeze what it computes.
    """
    value = ""
    for name, raw in _CMDLINE_VARIABLE.findall(text):
        line = f"the line {name}={raw}"
        if name == "GRUB_CMDLINE_LINUX+":
            raise ValueError(
                f"{line} appends, so no one line holds all arguments; join it with the assignment before it"
            )
        if name != "GRUB_CMDLINE_LINUX":
            continue
        try:
            value = _shell_word(raw)
        except ValueError as exc:
            raise ValueError(f"{line} {exc}") from exc
    return value


def with_default_grub_value(text: str, value: str) -> str:
    """Set GRUB_CMDLINE_LINUX, quoted so that the shell reads exactly `value`; every other line stays."""
    quoted = re.sub(r'(["\\$`])', r"\\\1", value)
    line = f'GRUB_CMDLINE_LINUX="{quoted}"'
    text, count = re.subn(r"(?m)^[ \t]*GRUB_CMDLINE_LINUX=.*$", lambda _match: line, text)
    if count == 0:
        text = f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n"
    return text


def default_grub_spoils(text: str) -> str | None:
    """Name what grubby would not hand through unharmed in /etc/default/grub, or None."""
    value = default_grub_value(text)
    if '"' in value:
        return "quotes in GRUB_CMDLINE_LINUX (grubby writes them back without escapes)"
    others = sorted({name for name, _value in _CMDLINE_VARIABLE.findall(text) if name != "GRUB_CMDLINE_LINUX"})
    if others:
        return f"{', '.join(others)} (grubby before 8.40-70 overwrites it with GRUB_CMDLINE_LINUX)"
    return grubby_spoils(value)


def future_cmdline(options: str) -> str:
    """What /etc/kernel/cmdline shall say where it is missing: a boot entry's options without variables.

    grubby would take the last entry, which is the rescue one. `$tuned_params` and its like stand in
    boot entries only: the kernel's installer adds them itself.
    """
    return " ".join(token for token in split_args(options) if not token.startswith("$"))


# ---------------------------------------------------------------------------------------------------
# rpm-ostree and bootc


def ostree_options(tokens: Sequence[str], wanted: Wanted) -> list[str]:
    """Options of one `rpm-ostree kargs` call that leads from `tokens` to what is wanted.

    --append-if-missing looks at the pair and --replace wants exactly one old value, so every
    governed argument that must go is deleted by its full text, as often as it stands there.
    """
    if settled(tokens, wanted):
        return []
    keep = [token for token in wanted.tokens() if tokens.count(token) == 1]
    gone = [token for token in tokens if wanted.governs(token) and token not in keep]
    return [f"--delete-if-present={token}" for token in gone] + [
        f"--append-if-missing={token}" for token in wanted.tokens()
    ]


def kargs_toml(arguments: Sequence[str]) -> str:
    """Text of a file below /usr/lib/bootc/kargs.d; a TOML list of plain strings is written as JSON writes it."""
    return f"# Kernel arguments of llamafleet.turboquant\nkargs = {json.dumps(list(arguments))}\n"


def line_diff(before: str | None, after: str | None, header: str) -> dict[str, str]:
    """A command line as a diff of one argument a line."""

    def lines(text: str | None) -> str:
        return "" if text is None else "".join(f"{token}\n" for token in split_args(text))

    return {"before_header": header, "after_header": header, "before": lines(before), "after": lines(after)}


def modprobe_options(text: str) -> list[tuple[str, str]]:
    """Return the parameters, as (module.parameter, value), that the `options` lines of a modprobe.d file set."""
    found: list[tuple[str, str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words = split_args(line.partition("#")[0])
        if len(words) > 2 and words[0] == "options":
            for word in words[2:]:
                name, _equals, value = word.partition("=")
                found.append((f"{words[1]}.{name}", value))
    return found


def modinfo_parameters(output: str) -> set[str]:
    """Return the names that `modinfo -F parm MODULE` lists, canonical."""
    return {canonical(line.partition(":")[0].strip()) for line in output.splitlines() if line.strip()}
