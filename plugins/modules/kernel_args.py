#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_args
short_description: Keep kernel arguments in every boot entry and for kernels to come
version_added: 1.0.0
description:
  - Brings every boot entry, C(/etc/kernel/cmdline) and C(GRUB_CMDLINE_LINUX) of C(/etc/default/grub) to the same state
    of the named arguments, so that neither another kernel nor the next one boots without them. All other arguments
    stay as they are and in their order.
  - Whether something has to be done is read from the stores themselves, entry by entry. grubby's exit code is 0 for
    nothing to do, for done, and for several ways of not having done it; so after a write everything is read back, and
    the module fails, with every file as it was before, when an argument is not there or another one was harmed.
  - grubby takes names for regular expressions and does not hand quotes, C(&), backslashes or file name patterns through
    unharmed. Where an existing argument would be harmed, the module writes the same files itself instead, and says so
    in a warning.
  - On an ostree host C(rpm-ostree kargs) is used. In the build of a bootc image (C(/usr/lib/bootc) is there, boot
    entries are not) the arguments go into C(/usr/lib/bootc/kargs.d/60-llamafleet.toml).
  - A name is compared as the kernel does it, with C(-) and C(_) for the same.
options:
  arguments:
    description:
      - Arguments by name. The value is text or a number, or null for an argument without a value, like C(quiet).
      - Each stands exactly once afterwards; other values of the name and doubles are removed.
      - Names that may stand several times (such as C(console)) and those of the boot loader (C(root)) are refused.
      - So are values with blanks, quotes, C(&), C($) or a backslash, and names that are known to be ignored by the
        kernel (C(amdgpu.gtt_size), C(amdttm.*)) or that C(modinfo) does not list for their module.
    type: dict
    default: {}
  absent:
    description:
      - Names that must not stand anywhere, with whatever value.
      - A name that ends in C(.*) stands for all parameters of a module (C(amdttm.*)).
    type: list
    elements: str
    default: []
  method:
    description:
      - Who keeps the boot entries. V(auto) takes V(rpm-ostree) where C(/run/ostree-booted) exists, V(bootc) in the
        build of a bootc image, V(grubby) otherwise.
    type: str
    choices: [auto, grubby, rpm-ostree, bootc]
    default: auto
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - The kernel reads its command line once, at boot. RV(reboot_required) compares the running kernel's with what is
    wanted, whether or not this run changed anything.
author:
  - llamafleet contributors (@llamafleet)
"""

EXAMPLES = r"""
- name: Let the GPU of a 128 GiB Strix Halo map 112 GiB, and take out what other guides leave behind
  llamafleet.turboquant.kernel_args:
    arguments:
      ttm.pages_limit: 29360128    # 112 GiB in pages of 4 KiB
    absent:
      - amdgpu.gttsize
      - amdgpu.gtt_size
      - amdttm.*
  become: true
  register: kernel_arguments

- name: Show what a run would change, entry by entry
  llamafleet.turboquant.kernel_args:
    arguments:
      amd_iommu: "off"    # quoted, or YAML makes it a boolean
      quiet: null
  become: true
  check_mode: true
  diff: true
"""

RETURN = r"""
reboot_required:
  description: The running kernel was not started with what is wanted. Always false in the build of an image.
  type: bool
  returned: success
method:
  description: Who keeps the boot entries on this host, V(grubby), V(rpm-ostree) or V(bootc).
  type: str
  returned: success
writer:
  description: What wrote, or would write; V(files) where grubby would have harmed an existing argument.
  type: str
  returned: success
before:
  description: Every command line before, by the name of its store.
  type: dict
  returned: success
  sample:
    "entry 4c5f-6.18.9-200.fc43.x86_64": ro rhgb quiet ttm.pages_limit=12288000
    /etc/kernel/cmdline: root=UUID=7f1e ro rhgb quiet
after:
  description: Every command line afterwards; in check mode, as it would be.
  type: dict
  returned: success
running:
  description: What the running kernel was started with, of the arguments named here.
  type: list
  elements: str
  returned: success
  sample: [ttm.pages_limit=12288000]
commands:
  description: The commands that write, as lists of words; empty when nothing is to be written.
  type: list
  elements: list
  returned: success
modprobe:
  description: Options below C(modprobe.d) that touch the same parameters. The command line wins over them where it sets
    the parameter too.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: The file.
      type: str
    name:
      description: Module and parameter.
      type: str
    value:
      description: The value it sets.
      type: str
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _kernel_args as ka

# A file system root of its own lets the unit tests run everything but the tools themselves.
ROOT = Path("/")

ENTRIES = "boot/loader/entries"
KERNEL_CMDLINE = "etc/kernel/cmdline"
DEFAULT_GRUB = "etc/default/grub"
GRUBENV = "boot/grub2/grubenv"
KARGS_D = "usr/lib/bootc/kargs.d"
KARGS_FILE = "60-llamafleet.toml"
MODPROBE_D = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d")


class Refusal(Exception):
    """Nothing was written, or everything is as it was; the text says why."""


class Snapshot:
    """The bytes, mode and times of files, to put them back as they were."""

    def __init__(self, paths: list[Path]) -> None:
        self.saved: dict[Path, tuple[bytes, os.stat_result] | None] = {}
        for path in paths:
            self.saved[path] = (path.read_bytes(), path.stat()) if path.exists() else None

    def restore(self) -> None:
        for path, saved in self.saved.items():
            if saved is None:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                continue
            content, stat = saved
            if not path.exists() or path.read_bytes() != content:
                # In place, so that owner, mode and SELinux label stay with the file.
                path.write_bytes(content)
            path.chmod(stat.st_mode)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


class Host:
    """What the ways of writing have in common: the tools, the files, the wanted state."""

    def __init__(self, module: Any, wanted: ka.Wanted) -> None:
        self.module = module
        self.wanted = wanted
        self.commands: list[list[str]] = []

    def path(self, relative: str) -> Path:
        return ROOT / relative

    def run(self, name: str, *arguments: str) -> tuple[int, str, str]:
        """Run a tool with an empty environment: grubby takes variables such as `args` for its own."""
        command = self.command(name, *arguments)
        rc, out, err = self.module.run_command(command)
        return rc, out, err

    def command(self, name: str, *arguments: str) -> list[str]:
        tool = self.module.get_bin_path(name, opt_dirs=["/usr/sbin", "/sbin"])
        if tool is None:
            raise Refusal(
                f"{name} is not installed, so the boot entries can be neither read nor written; "
                f"it comes with the package of that name"
            )
        env = self.module.get_bin_path("env", required=True)
        return [
            env,
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C.UTF-8",
            tool,
            *arguments,
        ]

    def write(self, path: Path, content: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(content)
        self.module.atomic_move(temporary, str(path))

    def refuse_unknown_parameters(self) -> None:
        """A parameter that its module does not have is ignored by the kernel without a word."""
        if self.module.get_bin_path("modinfo", opt_dirs=["/usr/sbin", "/sbin"]) is None:
            return
        for name in self.wanted.arguments:
            kernel_module, dot, parameter = name.partition(".")
            if not dot:
                continue
            rc, out, _err = self.run("modinfo", "-F", "parm", kernel_module)
            known = ka.modinfo_parameters(out)
            # No output: no such module in this kernel (systemd.unit is not one either), or a built-in without a list.
            if rc == 0 and known and ka.canonical(parameter) not in known:
                raise Refusal(
                    f"{name}: the kernel's module {kernel_module} has no parameter {parameter}, so the kernel would "
                    f"ignore it; it has {', '.join(sorted(known))}"
                )


class Grubby(Host):
    """Package systems: BLS entries, /etc/kernel/cmdline and /etc/default/grub."""

    name = "grubby"

    def entry_path(self, entry: ka.Entry) -> Path:
        return self.path(ENTRIES) / f"{entry.id}.conf"

    def options_of(self, entry: ka.Entry) -> str | None:
        """Return what the entry's file says after `options`; None where it starts no Linux kernel."""
        path = self.entry_path(entry)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise Refusal(
                f"the boot entry {entry.id or entry.index!r} is broken: {path} cannot be read ({exc})"
            ) from exc
        if not ka.entry_is_linux(text):
            if ka.entry_is_efi_program(text):
                return None
            raise Refusal(
                f"the boot entry {entry.id} is broken: {path} names no kernel (no line 'linux'); mend or remove it"
            )
        options = ka.entry_options(text)
        if len(options) != 1:
            raise Refusal(
                f"the boot entry {entry.id} is broken: {path} has {len(options)} lines 'options' where grubby "
                f"writes to exactly one, so arguments would be lost; give it one"
            )
        return options[0]

    def read(self) -> dict[str, str | None]:
        """Return every command line by the name of its store; None where the file is missing."""
        rc, out, err = self.run("grubby", "--info=ALL")
        if rc != 0:
            raise Refusal(f"grubby --info=ALL ended with {rc}: {(err or out).strip()}")
        listed = ka.parse_info(out)
        if not listed:
            raise Refusal(
                f"grubby lists no boot entry ({self.path(ENTRIES)} holds none), so there is nothing to set kernel "
                f"arguments on; is /boot mounted, and does this machine boot by GRUB?"
            )
        self.entries: list[ka.Entry] = []
        self.options: list[str] = []
        lines: dict[str, str | None] = {}
        for entry in listed:
            options = self.options_of(entry)
            if options is None:
                continue
            self.entries.append(entry)
            self.options.append(options)
            # The file is the truth: grubby's display joins blanks and expands patterns. Only where
            # the entry points to grubenv does the display know more.
            lines[f"entry {entry.id}"] = entry.args if "$kernelopts" in options else ka.without_root(options)
        if not lines:
            raise Refusal(f"no boot entry below {self.path(ENTRIES)} starts a Linux kernel")
        cmdline = self.path(KERNEL_CMDLINE)
        lines["/" + KERNEL_CMDLINE] = (
            cmdline.read_text(encoding="utf-8").replace("\n", " ").strip() if cmdline.exists() else None
        )
        grub = self.path(DEFAULT_GRUB)
        if grub.exists():
            try:
                lines["/" + DEFAULT_GRUB] = ka.default_grub_value(grub.read_text(encoding="utf-8"))
            except ValueError as exc:
                raise Refusal(f"{grub}: {exc}") from exc
        return lines

    def all_settled(self, lines: dict[str, str | None]) -> bool:
        shown = [entry.args for entry in self.entries]
        return all(
            line is not None and ka.settled(ka.split_args(line), self.wanted) for line in [*lines.values(), *shown]
        )

    def spoiled(self, lines: dict[str, str | None], removals: list[str]) -> str | None:
        """Name the store and the argument that grubby would harm, or None."""
        raw = {f"entry {entry.id}": options for entry, options in zip(self.entries, self.options)}
        for store, line in lines.items():
            if line is None:
                continue
            if store == "/" + DEFAULT_GRUB:
                reason = ka.default_grub_spoils(self.path(DEFAULT_GRUB).read_text(encoding="utf-8"))
            else:
                reason = ka.grubby_spoils(raw.get(store, line))
            if reason is not None:
                return f"{store}: {reason}"
            foreseen = ka.grubby_result(line, removals, self.wanted.tokens())
            if ka.split_args(foreseen) != ka.applied(ka.split_args(line), self.wanted):
                return f"{store}: it would make '{foreseen}' of '{line}'"
        return None

    def refuse_unwritable(self, lines: dict[str, str | None]) -> None:
        """As root, access fails for read-only file systems and immutable files: just where grubby is silent."""
        targets = [self.entry_path(entry) for entry in self.entries]
        targets += [self.path(store[1:]) for store in lines if store.startswith("/")]
        for target in targets:
            for place in (target, target.parent):
                while not place.exists():
                    place = place.parent
                if not os.access(place, os.W_OK):
                    raise Refusal(
                        f"{place} cannot be written (read-only file system, immutable file, or not root), so the "
                        f"kernel arguments of {target} cannot be set; nothing was changed. Remount it read-write "
                        f"and run again"
                    )

    def apply(self) -> dict[str, Any]:
        before = self.read()
        if self.all_settled(before):
            return {"changed": False, "writer": self.name, "before": before, "after": before}
        self.refuse_unknown_parameters()
        removals = ka.grubby_removals((line for line in before.values() if line is not None), self.wanted)
        spoiled = self.spoiled(before, removals)
        writer = self.name if spoiled is None else "files"
        if spoiled is not None:
            if any("$kernelopts" in options for options in self.options):
                raise Refusal(
                    f"grubby would harm {spoiled}, and entries that point to $kernelopts in grubenv can be written by "
                    f"grubby alone; nothing was changed. Take that argument out, or write it out in each entry"
                )
            self.module.warn(f"The boot entries are written without grubby, which would harm {spoiled}")
        self.refuse_unwritable(before)

        missing = "/" + KERNEL_CMDLINE if before["/" + KERNEL_CMDLINE] is None else None
        template = ka.future_cmdline(self.options[0].replace("$kernelopts", self.entries[0].args))
        after: dict[str, str | None] = {}
        for store, line in before.items():
            tokens = ka.split_args(template if store == missing else line or "")
            rewritten = writer == self.name or store == missing or not ka.settled(tokens, self.wanted)
            after[store] = " ".join(ka.applied(tokens, self.wanted)) if rewritten else line
        if writer == self.name:
            switches = ["--update-kernel=ALL"]
            if removals:
                switches.append("--remove-args=" + " ".join(removals))
            if self.wanted.arguments:
                switches.append("--args=" + " ".join(self.wanted.tokens()))
            self.commands.append(self.command("grubby", *switches))
        result = {"changed": True, "writer": writer, "before": before, "after": after}
        if self.module.check_mode:
            return result

        paths = [self.entry_path(entry) for entry in self.entries] + [self.path(GRUBENV)]
        snapshot = Snapshot([*paths, self.path(KERNEL_CMDLINE), self.path(DEFAULT_GRUB)])
        try:
            # First of all: where it is newer than /etc/kernel/cmdline, the next kernel's installation
            # rewrites all entries from it.
            if "/" + DEFAULT_GRUB in before and after["/" + DEFAULT_GRUB] != before["/" + DEFAULT_GRUB]:
                grub = self.path(DEFAULT_GRUB)
                text = grub.read_text(encoding="utf-8")
                self.write(grub, ka.with_default_grub_value(text, after["/" + DEFAULT_GRUB] or ""))
            if writer == self.name:
                if missing is not None:
                    self.write(self.path(KERNEL_CMDLINE), template + "\n")
                rc, out, err = self.module.run_command(self.commands[0])
                if rc != 0:
                    raise Refusal(f"grubby ended with {rc}: {(err or out).strip()}")
            else:
                for entry, options in zip(self.entries, self.options):
                    tokens = ka.split_args(options)
                    if not ka.settled(tokens, self.wanted):
                        path = self.entry_path(entry)
                        line = " ".join(ka.applied(tokens, self.wanted))
                        self.write(path, ka.with_entry_options(path.read_text(encoding="utf-8"), line))
                self.write(self.path(KERNEL_CMDLINE), (after["/" + KERNEL_CMDLINE] or "") + "\n")
            result["after"] = self.read_back(after)
        except BaseException:
            snapshot.restore()
            raise
        return result

    def read_back(self, expected: dict[str, str | None]) -> dict[str, str | None]:
        found = self.read()
        told = "grubby" if self.commands else "the write"
        for store, line in expected.items():
            there = ka.split_args(found.get(store) or "")
            if not ka.settled(there, self.wanted):
                raise Refusal(
                    f"{store} is not as wanted ({self.wanted.summary()}) after {told} reported success: it holds "
                    f"'{found.get(store)}'. Every file was put back as it was"
                )
            foreign = [token for token in ka.split_args(line or "") if not self.wanted.governs(token)]
            foreign_found = [token for token in there if not self.wanted.governs(token)]
            if foreign_found != foreign:
                raise Refusal(
                    f"{store}: {told} harmed arguments that are none of its business: expected "
                    f"'{' '.join(foreign)}', found '{' '.join(foreign_found)}'. Every file was put back as it was"
                )
        if not self.all_settled(found):
            raise Refusal(
                f"the files are as wanted ({self.wanted.summary()}), but grubby --info=ALL shows other arguments, so "
                f"the boot loader reads them elsewhere. Every file was put back as it was"
            )
        return found


class RpmOstree(Host):
    """ostree hosts: arguments belong to the deployment that boots next."""

    name = "rpm-ostree"

    def read(self) -> str:
        rc, out, err = self.run("rpm-ostree", "kargs")
        if rc != 0 or not out.strip():
            raise Refusal(f"rpm-ostree kargs ended with {rc} and no arguments: {(err or out).strip()}")
        return str(out.strip())

    def apply(self) -> dict[str, Any]:
        store = "pending deployment"
        before = self.read()
        tokens = ka.split_args(before)
        result: dict[str, Any] = {"changed": False, "writer": self.name}
        result.update(before={store: before}, after={store: before})
        options = ka.ostree_options(tokens, self.wanted)
        if not options:
            return result
        self.refuse_unknown_parameters()
        self.commands.append(self.command("rpm-ostree", "kargs", "--unchanged-exit-77", *options))
        result["changed"] = True
        result["after"] = {store: " ".join(ka.applied(tokens, self.wanted))}
        if self.module.check_mode:
            return result
        rc, out, err = self.module.run_command(self.commands[0])
        if rc not in (0, 77):
            raise Refusal(f"rpm-ostree kargs ended with {rc}: {(err or out).strip()}")
        found = self.read()
        if not ka.settled(ka.split_args(found), self.wanted):
            raise Refusal(
                f"rpm-ostree kargs ended with {rc}, but the pending deployment is not as wanted "
                f"({self.wanted.summary()}): it holds '{found}'"
            )
        # 77: somebody else was quicker, and the deployment already was as wanted.
        result["changed"] = rc == 0
        result["after"] = {store: found}
        return result


class BootcImage(Host):
    """The build of a bootc image: arguments are files of the image, joined when it is deployed."""

    name = "bootc"

    def kargs_of(self, path: Path) -> list[str]:
        try:
            import tomllib
        except ImportError as exc:
            raise Refusal(f"{path} is TOML, which Python reads from 3.11 on; this one is older") from exc
        try:
            kargs = tomllib.loads(path.read_text(encoding="utf-8")).get("kargs", [])
        except (OSError, ValueError) as exc:
            raise Refusal(f"{path} cannot be read as TOML: {exc}") from exc
        if not isinstance(kargs, list) or not all(isinstance(item, str) for item in kargs):
            raise Refusal(f"{path}: kargs must be a list of strings, it is {kargs!r}")
        return kargs

    def apply(self) -> dict[str, Any]:
        folder = self.path(KARGS_D)
        own = folder / KARGS_FILE
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else []:
            strangers = [token for token in self.kargs_of(path) if self.wanted.governs(token)] if path != own else []
            if strangers:
                raise Refusal(
                    f"{path} also sets {' '.join(strangers)}, and bootc joins all files of that folder; "
                    f"nothing was changed. Take it out of that file, which is part of the image"
                )
        tokens = self.kargs_of(own) if own.exists() else []
        before = " ".join(tokens) if own.exists() else None
        store = str(own)
        if ka.settled(tokens, self.wanted):
            return {"changed": False, "writer": self.name, "before": {store: before}, "after": {store: before}}
        wanted = ka.applied(tokens, self.wanted)
        if not self.module.check_mode:
            self.write(own, ka.kargs_toml(wanted))
            # What a container builder's umask made of it would keep bootc's readers out.
            own.chmod(0o644)
        return {"changed": True, "writer": self.name, "before": {store: before}, "after": {store: " ".join(wanted)}}


def find_method() -> str:
    if (ROOT / "run/ostree-booted").exists():
        return "rpm-ostree"
    entries = ROOT / ENTRIES
    if (ROOT / "usr/lib/bootc").is_dir() and not (entries.is_dir() and any(entries.glob("*.conf"))):
        return "bootc"
    return "grubby"


def modprobe_settings(wanted: ka.Wanted) -> list[dict[str, str]]:
    found = []
    for folder in MODPROBE_D:
        if not (ROOT / folder).is_dir():
            continue
        for path in sorted((ROOT / folder).glob("*.conf")):
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                # A dangling link: modprobe cannot read it either, so it sets nothing.
                continue
            found += [
                {"path": str(path), "name": name, "value": value}
                for name, value in ka.modprobe_options(text)
                if wanted.governs(name)
            ]
    return found


def warn_of_modprobe(module: Any, wanted: ka.Wanted, settings: list[dict[str, str]]) -> None:
    values = {ka.canonical(name): value for name, value in wanted.arguments.items()}
    for setting in settings:
        name = ka.canonical(setting["name"])
        if name not in values:
            module.warn(
                f"{setting['path']} sets {setting['name']}={setting['value']}, which no kernel argument overrides: "
                f"take the line out and rebuild the initramfs (dracut -f --regenerate-all)"
            )
        elif values[name] != setting["value"]:
            module.warn(
                f"{setting['path']} sets {setting['name']}={setting['value']}; the kernel argument "
                f"{setting['name']}={values[name]} wins over it, but the two should not disagree: take the line out"
            )


def fail(module: Any, message: str) -> NoReturn:
    module.fail_json(msg=message)
    raise AssertionError("fail_json returned")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "arguments": {"type": "dict", "default": {}},
            "absent": {"type": "list", "elements": "str", "default": []},
            "method": {"type": "str", "choices": ["auto", "grubby", "rpm-ostree", "bootc"], "default": "auto"},
        },
        supports_check_mode=True,
    )
    try:
        wanted = ka.wanted_state(module.params["arguments"], module.params["absent"])
    except ValueError as exc:
        fail(module, str(exc))
    method = module.params["method"] if module.params["method"] != "auto" else find_method()
    host: Grubby | RpmOstree | BootcImage
    if method == "grubby":
        host = Grubby(module, wanted)
    elif method == "rpm-ostree":
        host = RpmOstree(module, wanted)
    else:
        host = BootcImage(module, wanted)
    try:
        result = host.apply()
        running = ka.split_args((ROOT / "proc/cmdline").read_text(encoding="utf-8"))
    except Refusal as exc:
        fail(module, str(exc))
    except (OSError, UnicodeDecodeError) as exc:
        fail(module, f"a boot loader file cannot be read or written: {exc}")
    modprobe = modprobe_settings(wanted)
    warn_of_modprobe(module, wanted, modprobe)
    module.exit_json(
        method=method,
        # An image is not running, so there is nothing to reboot.
        reboot_required=method != "bootc" and not ka.settled(running, wanted),
        running=[token for token in running if wanted.governs(token)],
        commands=host.commands,
        modprobe=modprobe,
        diff=[
            ka.line_diff(line, result["after"][store], store)
            for store, line in result["before"].items()
            if result["after"][store] != line
        ],
        **result,
    )


if __name__ == "__main__":
    main()
