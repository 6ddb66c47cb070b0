#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the stand-in's signed RPM repository out of Debian packages.

Runs inside a container of the base image (`build` starts it), where apt knows what is installed. Below OUT it
leaves common/ (RPMs that every release offers), one folder for each release with the rest, and key.asc.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import tomllib

# Weight that no test reads: documentation, translations, sanitizers' static libraries, the LTO inspector.
LEFT_OUT = re.compile(
    r"/usr/share/(doc|man|info|locale|lintian|bug|doc-base)(/|$)"
    r"|/lib(a|hwa|l|t|ub)san\.a$"
    r"|-lto-dump(-\d+)?$|/lto-dump-\d+$"
)
# gcc-15, g++-15 and so on under /usr/bin: on Fedora that name exists only with the compatibility compiler.
VERSIONED = re.compile(r"/usr/bin/(gcc|g\+\+|cpp|gcov|gcov-dump|gcov-tool|gcc-(ar|nm|ranlib))-\d+$")
MERGED = ("bin", "sbin", "lib", "lib64")

HEADER = """\
%global debug_package %{{nil}}
%global __os_install_post %{{nil}}
%global _build_id_links none
%global _unpackaged_files_terminate_build 0
%global _binary_payload w3T0.zstdio
%global source_date_epoch_from_changelog 0
Name: {name}
Version: 1
Release: 0
Summary: {summary}
License: GPL-3.0-or-later
URL: https://github.com/llamafleet/turboquant
AutoReqProv: no
%description
{summary}
%install
"""


def run(*command: str, **more: object) -> str:
    """Run a command and return its output; a failure shows the command's own words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:300]} failed with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


@dataclass
class Deb:
    """One Debian package that becomes an RPM."""

    path: Path
    name: str
    version: str
    depends: list[list[str]]
    provides: list[str]
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    conffiles: list[str] = field(default_factory=list)


def names(relation: str) -> list[list[str]]:
    """Package names of a dependency field: one list of alternatives for each dependency."""
    groups = [part for part in relation.replace("\n", " ").split(",") if part.strip()]
    return [[re.split(r"[\s(:\[<]", word.strip(), maxsplit=1)[0] for word in group.split("|")] for group in groups]


def rpm_version(version: str) -> str:
    """Debian's upstream version in the characters that RPM allows."""
    upstream = version.partition(":")[2] or version
    return re.sub(r"[^A-Za-z0-9._+~]", ".", upstream.rsplit("-", 1)[0])


def merged(path: str) -> str:
    """The path below /usr for one that was packed for an unmerged system."""
    top = path.split("/")[1]
    return f"/usr{path}" if top in MERGED else path


def read_deb(path: Path) -> Deb:
    """Read name, relations and file list of a Debian package."""
    wanted = ["Package", "Version", "Depends", "Pre-Depends", "Provides"]
    fields = dict.fromkeys(wanted, "")
    key = ""
    for line in run("dpkg-deb", "-f", str(path), *wanted).splitlines():
        if line.startswith(" "):
            fields[key] += line
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    deb = Deb(
        path=path,
        name=fields["Package"],
        version=fields["Version"],
        depends=names(fields["Pre-Depends"]) + names(fields["Depends"]),
        provides=[group[0] for group in names(fields["Provides"])],
    )
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as stream,
        tarfile.open(fileobj=stream.stdout, mode="r|") as archive,
    ):
        for member in archive:
            name = merged("/" + member.name.removeprefix(".").strip("/"))
            if name == "/" or LEFT_OUT.search(name) or VERSIONED.search(name):
                continue
            (deb.folders if member.isdir() else deb.files).append(name)
    control = run("dpkg-deb", "--ctrl-tarfile", str(path), encoding="latin-1")
    if "conffiles" in control:
        deb.conffiles = [
            merged(line.split()[-1]) for line in run("dpkg-deb", "-I", str(path), "conffiles").splitlines() if line
        ]
    return deb


class Collection:
    """The Debian packages at hand, and which of them a package needs."""

    def __init__(self, debs: list[Deb], installed: set[str], without: set[str]) -> None:
        self.debs = {deb.name: deb for deb in debs if deb.name not in without}
        self.installed = installed
        self.without = without
        self.providers: dict[str, str] = {}
        for deb in self.debs.values():
            for virtual in deb.provides:
                self.providers.setdefault(virtual, deb.name)

    def needs(self, deb: Deb) -> list[str]:
        """Packages of this collection that a package depends on, without those of the base image."""
        found = []
        for alternatives in deb.depends:
            if any(name in self.installed or name in self.without for name in alternatives):
                continue
            for name in alternatives:
                chosen = name if name in self.debs else self.providers.get(name)
                if chosen:
                    found.append(chosen)
                    break
            else:
                raise SystemExit(f"{deb.name} depends on {' | '.join(alternatives)}, which apt did not fetch")
        return sorted(set(found) - {deb.name})

    def closure(self, wanted: list[str]) -> set[str]:
        """Everything that the wanted packages need, themselves included."""
        reached: set[str] = set()
        todo = [name for name in wanted if name not in self.installed]
        while todo:
            name = todo.pop()
            if name in reached:
                continue
            if name not in self.debs:
                raise SystemExit(f"packages.toml names the Debian package {name}, which apt did not fetch")
            reached.add(name)
            todo += self.needs(self.debs[name])
        return reached


def packages_of(recipe: dict, release: str, triplet: str) -> dict[str, dict]:
    """Fedora's packages of one release, with the compilers and the machine filled in."""
    values = {**recipe["compilers"][release], "triplet": triplet}

    def filled(value: object) -> object:
        if isinstance(value, str):
            return value.format(**values)
        if isinstance(value, list):
            return [filled(item) for item in value]
        if isinstance(value, dict):
            return {filled(key): filled(item) for key, item in value.items()}
        return value

    return {
        name: package
        for name, package in filled(recipe["packages"]).items()  # type: ignore[attr-defined]
        if release in package.get("releases", [release])
    }


def deb_section(deb: Deb, needs: list[str], lists: Path) -> str:
    """The part of a spec file that turns one Debian package into an RPM."""
    rows = []
    for path in deb.files:
        quoted = f'"{path}"'
        rows.append(f"%config(noreplace) {quoted}" if path in deb.conffiles else quoted)
    # A folder that the base image has belongs to nobody here: removing a package must not take it.
    rows += [f'%dir "{path}"' for path in deb.folders if not Path(path).exists()]
    listed = lists / f"{deb.name}.files"
    listed.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return "\n".join(
        [
            f"%package -n standin-{deb.name}",
            f"Version: {rpm_version(deb.version)}",
            "Release: 0.standin",
            f"Summary: Content of Debian's {deb.name} {deb.version}",
            "AutoReqProv: no",
            *[f"Requires: standin-{name}" for name in needs],
            f"%description -n standin-{deb.name}",
            f"The files of Debian's package {deb.name} {deb.version}, for tests of llamafleet.turboquant.",
            f"%files -n standin-{deb.name} -f {listed}" if rows else f"%files -n standin-{deb.name}",
            "",
        ]
    )


def fedora_section(name: str, package: dict, debs: Collection, release: str, names_known: set[str]) -> str:
    """The part of a spec file for a package of Fedora's name: what it requires, and links."""
    own = [deb for deb in package.get("debs", []) if deb in debs.debs]
    requires = [f"standin-{deb}" for deb in own]
    for other in package.get("requires", []):
        if other not in names_known:
            raise SystemExit(f"packages.toml: {name} requires {other}, which release {release} does not offer")
        requires.append(other)
    version = rpm_version(debs.debs[own[0]].version) if own else "1"
    return "\n".join(
        [
            f"%package -n {name}",
            f"Version: {version}",
            f"Release: 0.standin.fc{release}",
            f"Summary: Stand-in for Fedora's {name}",
            "AutoReqProv: no",
            *[f"Requires: {other}" for other in requires],
            f"%description -n {name}",
            f"Stands in for Fedora's package {name}; its content is Debian's.",
            f"%files -n {name}",
            *[f'"{path}"' for path in package.get("links", {})],
            "",
        ]
    )


# Fedora's glibc and systemd do this when files of theirs arrive; Debian's packages rely on dpkg triggers.
TRIGGERS = """\
%transfiletriggerin -n {name} -- /usr/lib
/usr/sbin/ldconfig
%transfiletriggerpostun -n {name} -- /usr/lib
/usr/sbin/ldconfig
"""
SYSTEMD_TRIGGERS = """\
%transfiletriggerin -n {name} -- /usr/lib/sysusers.d
systemd-sysusers
%transfiletriggerin -P 900000 -n {name} -- /usr/lib/tmpfiles.d
systemd-tmpfiles --create || :
%transfiletriggerin -P 800000 -n {name} -- /usr/lib/systemd/system
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
%transfiletriggerin -P 700000 -n {name} -- /usr/share/dbus-1
if [ -d /run/systemd/system ]; then busctl call org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig; fi
"""


def base_section(name: str, release: str) -> str:
    """A package that says to be installed, and whose files are Debian's."""
    provides = {
        "bash": ["/bin/sh", "/usr/bin/sh", "/bin/bash", "/usr/bin/bash"],
        "python3": ["/usr/bin/python3"],
        "fedora-release-common": ["system-release", f"system-release({release})", "redhat-release"],
    }.get(name, [])
    triggers = {"glibc": TRIGGERS, "systemd": SYSTEMD_TRIGGERS}.get(name, "")
    return "\n".join(
        [
            f"%package -n {name}",
            f"Version: {release}",
            f"Release: 0.standin.fc{release}",
            f"Summary: Stand-in for Fedora's {name}",
            "AutoReqProv: no",
            *[f"Provides: {what} = {release}" if what.startswith("s") else f"Provides: {what}" for what in provides],
            f"%description -n {name}",
            f"Stands in for Fedora's package {name}; the files are the base system's.",
            triggers.format(name=name),
            f"%files -n {name}",
            "",
        ]
    )


def rpmbuild(spec: Path, out: Path) -> None:
    """Build every package of a spec file into one folder."""
    work = spec.with_suffix(".work")
    out.mkdir(parents=True, exist_ok=True)
    run(
        "rpmbuild", "-bb", "--quiet", "--define", f"_topdir {work}", "--define", f"_rpmdir {out}",
        "--define", "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
        "--target", platform.machine(), str(spec),
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)


def sign(out: Path, home: Path) -> None:
    """Sign every RPM below a folder with a key that is made here, and leave the public key beside them."""
    who = "llamafleet test repository <tests@llamafleet.invalid>"
    home.mkdir(mode=0o700, exist_ok=True)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    run(*gpg, "--quick-generate-key", who, "rsa3072", "sign", "never")
    (out / "key.asc").write_text(run(*gpg, "--armor", "--export", who), encoding="ascii")
    rpms = sorted(str(path) for path in out.rglob("*.rpm"))
    run(
        "rpmsign", "--addsign", "--define", f"_gpg_path {home}", "--define", f"_gpg_name {who}",
        "--define", f"_openpgp_sign_id {who}", *rpms,
    )  # fmt: skip
    run("gpgconf", "--homedir", str(home), "--kill", "all")


def main() -> None:
    """Fetch, unpack, build, sign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="packages.toml")
    parser.add_argument("--debs", type=Path, required=True, help="folder that keeps what apt fetches")
    parser.add_argument("--out", type=Path, required=True, help="where the repository's parts are left")
    args = parser.parse_args()

    recipe = tomllib.loads(args.recipe.read_text(encoding="utf-8"))
    arch = run("dpkg", "--print-architecture").strip()
    triplet = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}.get(arch)
    if triplet is None:
        raise SystemExit(f"the stand-in is made for amd64 and arm64; this machine is {arch}")
    releases = {release: packages_of(recipe, release, triplet) for release in recipe["compilers"]}
    wanted = sorted({deb for packages in releases.values() for p in packages.values() for deb in p.get("debs", [])})

    print(f"fetching the content of {len(wanted)} Debian packages and what they need", flush=True)
    present = run("dpkg-query", "-W", "-f", "${Package}, ${Provides}\\n").splitlines()
    installed = {group[0] for line in present for group in names(line)}
    (args.debs / "partial").mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-y", "-q", "--no-install-recommends", "-o", "APT::Sandbox::User=root"]
    run(*apt, "update")
    fetched = run(*apt, "--print-uris", "install", *wanted)
    files = re.findall(r"^'[^']+' (\S+) \d+ ", fetched, re.MULTILINE)
    run(*apt, "-o", f"Dir::Cache::Archives={args.debs}", "--download-only", "install", *wanted)
    run(*apt, "-o", f"Dir::Cache::Archives={args.debs}", "install", "createrepo-c", "gpg-agent")

    print(f"unpacking {len(files)} packages", flush=True)
    work = Path("/var/tmp/standin")
    stage = work / "stage"
    for top in MERGED:
        (stage / "usr" / top).mkdir(parents=True, exist_ok=True)
        (stage / top).symlink_to(f"usr/{top}")
    debs = []
    for file in files:
        deb = read_deb(args.debs / file)
        debs.append(deb)
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb.path)], stdout=subprocess.PIPE) as stream:
            subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", str(stage)], stdin=stream.stdout, check=True)
    collection = Collection(debs, installed, set(recipe["without"]["debs"]))
    needed = {
        release: collection.closure([deb for p in packages.values() for deb in p.get("debs", [])])
        for release, packages in releases.items()
    }
    common = set.intersection(*needed.values())

    lists = work / "lists"
    lists.mkdir()
    shutil.rmtree(args.out, ignore_errors=True)
    parts = {"common": common, **{release: found - common for release, found in needed.items()}}
    for part, members in parts.items():
        print(f"building {len(members)} RPMs of Debian's content for {part}", flush=True)
        sections = [
            deb_section(collection.debs[name], collection.needs(collection.debs[name]), lists)
            for name in sorted(members)
        ]
        spec = work / f"content-{part}.spec"
        head = HEADER.format(name=f"content-{part}", summary=f"Debian content of {part}")
        spec.write_text(head + f"cp -al {stage}/. %{{buildroot}}\n\n" + "\n".join(sections), encoding="utf-8")
        rpmbuild(spec, args.out / part)

    for release, packages in releases.items():
        print(f"building {len(packages)} RPMs of Fedora's names for {release}", flush=True)
        base = [*recipe["base"]["packages"], "fedora-release-common"]
        links = [
            f"mkdir -p %{{buildroot}}{Path(path).parent} && ln -s '{target}' '%{{buildroot}}{path}'"
            for package in packages.values()
            for path, target in package.get("links", {}).items()
        ]
        known = {*packages, *base}
        offered = [
            fedora_section(name, package, collection, release, known) for name, package in sorted(packages.items())
        ]
        for name, rest, out in (
            ("offered", "\n".join([*links, "", *offered]), args.out / release),
            ("base", "\n".join(base_section(name, release) for name in base), args.out / f"base-{release}"),
        ):
            spec = work / f"{name}-{release}.spec"
            head = HEADER.format(name=f"{name}-{release}", summary=f"{name} of release {release}")
            spec.write_text(f"{head}\n{rest}", encoding="utf-8")
            rpmbuild(spec, out)

    print("signing, and writing the repositories' metadata", flush=True)
    sign(args.out, work / "gnupg")
    for release in releases:
        view = work / f"view-{release}"
        view.mkdir()
        for part in ("common", release):
            (view / part).symlink_to(args.out / part)
        run("createrepo_c", "--quiet", "--general-compress-type=gz", "--no-database", str(view))
        shutil.move(view / "repodata", args.out / release / "repodata")
    os.sync()


if __name__ == "__main__":
    main()
