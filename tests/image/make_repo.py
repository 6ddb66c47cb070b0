#!/usr/bin/env python3
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the stand-in's signed RPM repository out of Debian packages.

Runs inside a container of the base image (`build` starts it), where apt knows what is installed. Below OUT it
leaves common/ (RPMs that every release offers), one folder for each release with the rest, and key.asc. What is
costly lies in CACHE and is made again only when its input changed: the Debian packages, their file lists, the
signed RPMs, the key.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
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
SIGNER = "llamafleet test repository <tests@llamafleet.invalid>"
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
%install"""


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
    files: list[str]
    folders: list[str]
    conffiles: list[str]


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


def read_archive(path: Path) -> dict:
    """Everything that is asked of a Debian package; kept beside it, for its content has to be unpacked for it."""
    kept = path.with_suffix(".json")
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    wanted = ["Package", "Version", "Depends", "Pre-Depends", "Provides"]
    found: dict = {**dict.fromkeys(wanted, ""), "files": [], "folders": [], "conffiles": []}
    key = ""
    for line in run("dpkg-deb", "-f", str(path), *wanted).splitlines():
        if line.startswith(" "):
            found[key] += line
        else:
            key, _, value = line.partition(":")
            found[key] = value.strip()
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as stream,
        tarfile.open(fileobj=stream.stdout, mode="r|") as archive,
    ):
        for member in archive:
            name = "/" + member.name.removeprefix(".").strip("/")
            if name != "/":
                found["folders" if member.isdir() else "files"].append(merged(name))
    if "conffiles" in run("dpkg-deb", "--ctrl-tarfile", str(path), encoding="latin-1"):
        rows = run("dpkg-deb", "-I", str(path), "conffiles").splitlines()
        found["conffiles"] = [merged(row.split()[-1]) for row in rows if row]
    new = kept.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(found), encoding="utf-8")
    new.rename(kept)
    return found


def read_deb(path: Path) -> Deb:
    """Name, relations and the files that are taken of a Debian package."""
    found = read_archive(path)

    def taken(paths: list[str]) -> list[str]:
        return [name for name in paths if not (LEFT_OUT.search(name) or VERSIONED.search(name))]

    return Deb(
        path=path,
        name=found["Package"],
        version=found["Version"],
        depends=names(found["Pre-Depends"]) + names(found["Depends"]),
        provides=[group[0] for group in names(found["Provides"])],
        files=taken(found["files"]),
        folders=taken(found["folders"]),
        conffiles=found["conffiles"],
    )


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


def deb_section(deb: Deb, needs: list[str]) -> str:
    """The part of a spec file that turns one Debian package into an RPM."""
    rows = [f'%config(noreplace) "{path}"' if path in deb.conffiles else f'"{path}"' for path in deb.files]
    # A folder that the base image has belongs to nobody here: removing a package must not take it.
    rows += [f'%dir "{path}"' for path in deb.folders if not Path(path).exists()]
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
            f"%files -n standin-{deb.name}",
            *rows,
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


class Pool:
    """Signed RPMs by a digest of what they are made from, and the key that signs them."""

    def __init__(self, cache: Path, work: Path) -> None:
        self.folder = cache / "rpms"
        self.home = cache / "gnupg"
        self.work = work
        self.folder.mkdir(parents=True, exist_ok=True)

    def place(self, *inputs: str) -> Path:
        return self.folder / hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:24]

    def build(self, name: str, install: Iterable[str], sections: dict[Path, str]) -> None:
        """Build the RPMs of some sections, one folder of the pool for each; a folder is there only when complete."""
        out = self.work / name
        spec = self.work / f"{name}.spec"
        head = HEADER.format(name=name, summary=f"Packages of {name}")
        spec.write_text("\n".join([head, *install, "", *sections.values()]), encoding="utf-8")
        run(
            "rpmbuild", "-bb", "--quiet", "--define", f"_topdir {self.work}/{name}.build", "--define", f"_rpmdir {out}",
            "--define", "_build_name_fmt %%{NAME}.rpm", "--target", platform.machine(), str(spec),
        )  # fmt: skip
        self.sign(sorted(out.glob("*.rpm")))
        for place, section in sections.items():
            part = place.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for package in re.findall(r"^%package -n (\S+)$", section, re.MULTILINE):
                shutil.move(out / f"{package}.rpm", part / f"{package}.rpm")
            part.rename(place)

    def key(self) -> str:
        """The public key; the pair is made at the first call."""
        gpg = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--pinentry-mode", "loopback"]
        if not self.home.exists():
            self.home.mkdir(mode=0o700)
            run(*gpg, "--passphrase", "", "--quick-generate-key", SIGNER, "rsa3072", "sign", "never")
        return run(*gpg, "--armor", "--export", SIGNER)

    def sign(self, rpms: list[Path]) -> None:
        self.key()
        run(
            "rpmsign", "--addsign", "--define", f"_gpg_path {self.home}", "--define", f"_gpg_name {SIGNER}",
            "--define", f"_openpgp_sign_id {SIGNER}", *map(str, rpms),
        )  # fmt: skip


def fetch(wanted: list[str], debs: Path) -> list[Path]:
    """Let apt fetch packages and all that they need beyond the base image."""
    (debs / "partial").mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-y", "-q", "--no-install-recommends", "-o", "APT::Sandbox::User=root"]
    run(*apt, "update")
    files = re.findall(r"^'[^']+' (\S+) \d+ ", run(*apt, "--print-uris", "install", *wanted), re.MULTILINE)
    into = ["-o", f"Dir::Cache::Archives={debs}", "-o", "DPkg::Lock::Timeout=600"]
    run(*apt, *into, "--download-only", "install", *wanted)
    # Only here, in the container that builds.
    run(*apt, *into, "install", "createrepo-c", "gpg-agent")
    return [debs / file for file in files]


def unpack(debs: list[Deb], stage: Path) -> None:
    """Lay the files of packages into one tree, with the folders of a merged /usr."""
    for top in MERGED:
        (stage / "usr" / top).mkdir(parents=True, exist_ok=True)
        (stage / top).symlink_to(f"usr/{top}")
    for deb in debs:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb.path)], stdout=subprocess.PIPE) as stream:
            subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", str(stage)], stdin=stream.stdout, check=True)


def main() -> None:
    """Fetch, unpack, build, sign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="packages.toml")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps what is costly")
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
    files = fetch(wanted, args.cache / "debs")
    print(f"reading {len(files)} packages", flush=True)
    collection = Collection([read_deb(file) for file in files], installed, set(recipe["without"]["debs"]))
    needed = {
        release: collection.closure([deb for p in packages.values() for deb in p.get("debs", [])])
        for release, packages in releases.items()
    }

    work = Path("/var/tmp/standin")
    work.mkdir()
    pool = Pool(args.cache, work)
    places: dict[str, Path] = {}
    missing: dict[Path, str] = {}
    for name in sorted(set.union(*needed.values())):
        deb = collection.debs[name]
        section = deb_section(deb, collection.needs(deb))
        places[name] = pool.place(HEADER, deb.path.name, section)
        if not places[name].exists():
            missing[places[name]] = section
    if missing:
        print(f"unpacking and building {len(missing)} RPMs of Debian's content", flush=True)
        unpack([collection.debs[name] for name, place in places.items() if place in missing], work / "stage")
        pool.build("content", [f"cp -al {work}/stage/. %{{buildroot}}/"], missing)

    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    common = set.intersection(*needed.values())
    for part, members in {"common": common, **{release: needed[release] - common for release in releases}}.items():
        for name in sorted(members):
            shutil.copytree(places[name], args.out / part, dirs_exist_ok=True, copy_function=os.link)
    for release, packages in releases.items():
        base = [*recipe["base"]["packages"], "fedora-release-common", "grubby"]
        known = {*packages, *base}
        links = [
            f"mkdir -p '%{{buildroot}}{Path(path).parent}' && ln -s '{target}' '%{{buildroot}}{path}'"
            for package in packages.values()
            for path, target in package.get("links", {}).items()
        ]
        offered = [fedora_section(name, package, collection, release, known) for name, package in packages.items()]
        for name, install, sections, out in (
            (f"offered-{release}", links, offered, args.out / release),
            (f"base-{release}", [], [base_section(name, release) for name in base], args.out / f"base-{release}"),
        ):
            text = "\n".join(sections)
            place = pool.place(HEADER, *install, text)
            if not place.exists():
                print(f"building {len(sections)} RPMs: {name}", flush=True)
                pool.build(name, install, {place: text})
            shutil.copytree(place, out, dirs_exist_ok=True, copy_function=os.link)

    print("writing the repositories' metadata", flush=True)
    (args.out / "key.asc").write_text(pool.key(), encoding="ascii")
    for release in releases:
        view = work / f"view-{release}"
        view.mkdir()
        for part in ("common", release):
            (view / part).symlink_to(args.out / part)
        run("createrepo_c", "--quiet", "--general-compress-type=gz", "--no-database", str(view))
        shutil.move(view / "repodata", args.out / release / "repodata")
    run("gpgconf", "--homedir", str(pool.home), "--kill", "all")


if __name__ == "__main__":
    main()
