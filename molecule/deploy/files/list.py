# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List what is on the host, packages left out, and compare it with what was there before: `list.py [before]`.

Without an argument the list is written to a file of its own; with one, the lines that came and went are printed.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOTS = ("/etc", "/home", "/opt", "/root", "/run/llamafleet", "/srv", "/usr/local", "/var/cache", "/var/lib")
# Of the package manager and of systemd, and what Ansible, the linker and useradd keep for themselves.
OTHERS = (
    "/etc/alternatives",
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/ld.so.cache",
    "/etc/passwd-",
    "/etc/shadow-",
    "/etc/subgid-",
    "/etc/subuid-",
    "/var/cache/ldconfig",
    "/var/cache/libdnf5",
    "/var/lib/alternatives",
    "/var/lib/dnf",
    "/var/lib/rpm",
    "/var/lib/systemd",
)
BEFORE = Path("/srv/before")
ANSIBLE = str(Path.home() / ".ansible")


def digest(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if not path.is_file():
        return ""
    if path.stat().st_size > 1 << 20:
        return f"{path.stat().st_size} bytes"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def listed() -> set[str]:
    # Without those in dispute: the paths of packages that were installed meanwhile are not there before.
    packaged = set(subprocess.run(["rpm", "-qal"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines())
    found = set()
    for root in ROOTS:
        for folder, folders, files in os.walk(root):
            for name in folders + files:
                path = Path(folder, name)
                if str(path) not in packaged and not str(path).startswith((*OTHERS, str(BEFORE), ANSIBLE)):
                    found.add(f"{path} {digest(path)}".strip())
    for database in ("passwd", "group"):
        done = subprocess.run(["getent", database], stdout=subprocess.PIPE, text=True, check=True)
        found |= {f"{database} {line}" for line in done.stdout.splitlines()}
    return found


def main() -> None:
    found = listed()
    if len(sys.argv) == 1:
        BEFORE.write_text("\n".join(sorted(found)) + "\n")
        return
    before = set(BEFORE.read_text().splitlines())
    packaged = set(subprocess.run(["rpm", "-qal"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines())
    for line in sorted(found - before):
        print(f"new: {line}")
    for line in sorted(line for line in before - found if line.split(" ")[0] not in packaged):
        print(f"gone: {line}")


if __name__ == "__main__":
    main()
