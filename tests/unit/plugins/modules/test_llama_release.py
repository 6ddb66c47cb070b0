# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module on a root of its own, with artifacts whose llama-server is a script."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _artifact
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_release

A, B, C, D = (character * 32 for character in "abcd")

SERVER = """#!/bin/sh
case "$1" in
    --version) echo "version: 9079 (69d8e4be4)" >&2 ;;
    --help) echo "-m,    --model FNAME    model path to load"; echo "        (env: LLAMA_ARG_MODEL)" ;;
    --list-devices) echo "Available devices:"; DEVICES ;;
esac
"""


class Exit(Exception):
    def __init__(self, result):
        super().__init__(str(result.get("msg", "")))
        self.result = result


class Root:
    """A host's /opt/llamafleet and a controller's artifacts."""

    def __init__(self, top: Path, monkeypatch) -> None:
        self.top = top
        self.root = top / "opt"
        self.monkeypatch = monkeypatch
        self.warned: list[str] = []

    def artifact(self, fingerprint: str, server: str = SERVER, **more) -> Path:
        stage = self.top / f"stage-{fingerprint}"
        (stage / "bin").mkdir(parents=True)
        (stage / "bin/llama-server").write_text(server.replace("DEVICES", more.pop("devices", ":")), encoding="utf-8")
        (stage / "bin/llama-server").chmod(0o755)
        host = _artifact.read_host()
        manifest = {
            "format": 1,
            "fingerprint": fingerprint,
            "source": {},
            "backends": ["cpu"],
            "options": {},
            "compilers": {},
            "architecture": host.architecture,
            "distribution": {},
            "requirements": {"glibc": "2.2", "glibcxx": None, "libraries": [], "cpu_flags": []},
            "built": {},
            "files": _artifact.list_files(stage),
            **more,
        }
        path = self.top / f"{fingerprint}.tar.gz"
        _artifact.pack(stage, manifest, path)
        return path

    def selinux(self, restorecon: str | None) -> Path:
        """Switch SELinux on, with this program as restorecon; return the file where it says how it was called."""
        on, program, log = self.top / "enforce", self.top / "restorecon", self.top / "restorecon.log"
        on.touch()
        if restorecon is not None:
            program.write_text(
                f'#!/bin/sh\n{{ echo "$@"; ls -d "$2"/bin; }} >> {log}\n{restorecon}\n', encoding="utf-8"
            )
            program.chmod(0o755)
        self.monkeypatch.setattr(llama_release, "SELINUX", on)
        found = {"restorecon": str(program)} if restorecon is not None else {}
        self.monkeypatch.setattr(llama_release.shutil, "which", lambda name, path: found.get(name))
        return log

    def run(self, fingerprint: str, archive: Path | str = "", check: bool = False, **more):
        params = {
            "fingerprint": fingerprint,
            "src": "",
            "root": str(self.root),
            "activate": True,
            "keep": 3,
            "allow_software_devices": False,
            "environment": {},
            "archive": str(archive),
            **more,
        }

        warned = self.warned

        class Module:
            def __init__(self, argument_spec, supports_check_mode):
                assert set(argument_spec) == set(params)
                self.params = params
                self.check_mode = check

            def warn(self, text):
                warned.append(text)

            def exit_json(self, **result):
                raise Exit(result)

            def fail_json(self, **result):
                raise Exit({"failed": True, "changed": False, **result})

        self.monkeypatch.setattr(llama_release, "AnsibleModule", Module)
        try:
            llama_release.main()
        except Exit as caught:
            return caught.result
        raise AssertionError("the module ended without a result")

    @property
    def current(self) -> str | None:
        return _artifact.current_release(self.root)

    @property
    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.root / "releases").iterdir())


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Root(tmp_path, monkeypatch)


def test_a_release_is_installed_and_switched_to(host):
    result = host.run(A, host.artifact(A))
    assert (result["changed"], result["installed"], result["switched"], result["previous"]) == (True, True, True, "")
    assert host.current == A
    release = host.root / "releases" / A
    assert json.loads((release / "devices.json").read_text(encoding="utf-8")) == []
    # Servers run as a user of their own, who must be able to read all of it.
    for path in (host.root, release, release / "bin", release / "devices.json", release / "manifest.json"):
        assert path.stat().st_mode & 0o055 in (0o055, 0o044)


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_the_service_reads_a_release_whatever_the_umask_of_the_login(host, umask):
    archive = host.artifact(A)
    before = os.umask(umask)
    try:
        host.run(A, archive)
    finally:
        os.umask(before)
    release = host.root / "releases" / A
    for folder in (host.root, release.parent, release, release / "bin"):
        assert folder.stat().st_mode & 0o777 == 0o755, folder
    assert (release / "bin/llama-server").stat().st_mode & 0o777 == 0o755
    assert (release / "devices.json").stat().st_mode & 0o777 == 0o644


def test_the_second_run_changes_nothing(host):
    host.run(A, host.artifact(A))
    before = (host.root / "releases" / A).stat().st_mtime_ns
    result = host.run(A)
    assert not result["changed"]
    assert result["manifest"]["fingerprint"] == A
    assert (host.root / "releases" / A).stat().st_mtime_ns == before


def test_an_archive_is_asked_for_only_where_it_is_needed(host):
    assert host.run(A) == {"changed": False, "needs_archive": True, "release": str(host.root / "releases" / A)}
    assert not host.root.exists()
    host.run(A, host.artifact(A))
    assert not host.run(A)["needs_archive"]


def test_check_mode_predicts_and_touches_nothing(host):
    result = host.run(A, check=True)
    assert result["changed"]
    assert result["diff"] == {
        "before": {"current": "", "releases": []},
        "after": {"current": A, "releases": [A]},
    }
    assert not host.root.exists()


def test_made_ready_without_being_switched_to(host):
    host.run(A, host.artifact(A))
    assert host.run(B, host.artifact(B), activate=False)["changed"]
    assert host.current == A
    assert host.releases == [A, B]
    assert not host.run(B, activate=False)["changed"]
    switched = host.run(B)
    assert (switched["switched"], switched["installed"], switched["previous"]) == (True, False, A)
    assert host.current == B


def test_the_oldest_go_and_the_current_one_stays(host):
    for age, name in enumerate([A, B, C]):
        host.run(name, host.artifact(name))
        os.utime(host.root / "releases" / name, (1000 + age, 1000 + age))
    # Back to the oldest, and a new one made ready: the current one is kept although it is the oldest.
    host.run(A)
    result = host.run(D, host.artifact(D), activate=False, keep=2)
    assert sorted(result["pruned"]) == [B, C]
    assert host.releases == [A, D]
    assert host.current == A


def test_a_running_release_stays(host, monkeypatch):
    host.run(A, host.artifact(A))
    monkeypatch.setattr(_artifact, "running_releases", lambda root: {A})
    host.run(B, host.artifact(B), keep=1)
    assert host.releases == [A, B]
    monkeypatch.setattr(_artifact, "running_releases", lambda root: set())
    assert host.run(B, keep=1)["pruned"] == [A]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"architecture": "s390x"}, "was built for s390x, and this host is"),
        ({"requirements": {"glibc": "9.99"}}, "needs glibc 9.99 or newer, and this host has"),
        ({"requirements": {"cpu_flags": ["amx_tile_9"]}}, "this one lacks amx_tile_9"),
        ({"backends": ["cpu", "cuda"]}, "the cuda backend names no CUDA device"),
        (
            {"backends": ["cpu", "vulkan"], "devices": 'echo "  Vulkan0: llvmpipe (LLVM 21) (1 MiB, 1 MiB free)"'},
            "which computes on the processor",
        ),
        ({"server": "#!/bin/sh\nkill -ILL $$\n"}, r"--version of the new release ended with exit code -4"),
        ({"server": "#!/bin/sh\necho nothing\n"}, "did not say its version"),
        ({"server": '#!/bin/sh\necho "version: 1 (x)"\n'}, "lists no option --model"),
    ],
)
def test_what_cannot_run_here_is_refused_before_anything_is_switched(host, more, said):
    host.run(A, host.artifact(A))
    with pytest.raises(Exit, match=said):
        raise Exit(host.run(B, host.artifact(B, **more)))
    assert host.current == A
    assert host.releases == [A]


def test_a_host_without_the_builders_libraries_is_told_where_those_are(host, monkeypatch, tmp_path):
    monkeypatch.setattr(llama_release._build_job, "linked_libraries", lambda program, build: (["libcudart.so.13"], []))
    archive = host.artifact(A, requirements={"run_path": ["/srv/conda/env-0/lib", str(tmp_path)]})
    with pytest.raises(Exit, match=r"lacks libcudart.so.13.*; its builder has libraries in /srv/conda/env-0/lib, and"):
        raise Exit(host.run(A, archive))


GIB = 1 << 30
CARD = {
    "name": "NVIDIA GeForce RTX 4090", "vendor": "nvidia", "pci_address": "0000:01:00.0", "integrated": False,
    "vram_total_bytes": 24564 << 20, "vram_used_bytes": 0, "gtt_total_bytes": None, "backends": ["cuda", "vulkan"],
}  # fmt: skip
MACHINE = {"gpus": [CARD], "memory": {"ram_total_bytes": 64 * GIB, "ram_available_bytes": 60 * GIB}}


def test_another_gpu_than_the_hosts_is_refused_before_anything_is_switched(host, monkeypatch):
    monkeypatch.setattr(llama_release._hardware, "read_hardware", lambda: MACHINE)
    host.run(A, host.artifact(A))
    other = 'echo "  CUDA0: NVIDIA T400 4GB (3900 MiB, 3800 MiB free)"'
    with pytest.raises(
        Exit, match=r"names CUDA0 .NVIDIA T400 4GB, 3900 MiB., and the host has NVIDIA GeForce RTX 4090"
    ):
        raise Exit(host.run(B, host.artifact(B, backends=["cpu", "cuda"], devices=other)))
    assert (host.current, host.releases) == (A, [A])
    right = 'echo "  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23600 MiB free)"'
    assert host.run(C, host.artifact(C, backends=["cpu", "cuda"], devices=right))["devices"][0]["total_mib"] == 24080
    assert host.warned == []


def test_a_gpu_that_the_release_does_not_see_is_told(host, monkeypatch):
    second = {**CARD, "pci_address": "0000:02:00.0"}
    monkeypatch.setattr(llama_release._hardware, "read_hardware", lambda: {**MACHINE, "gpus": [CARD, second]})
    one = 'echo "  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23600 MiB free)"'
    host.run(A, host.artifact(A, backends=["cpu", "cuda"], devices=one))
    assert host.current == A
    assert [text.rpartition(". ")[2] for text in host.warned] == ["Not named: CUDA1"]


def test_a_software_device_is_accepted_for_tests(host):
    archive = host.artifact(
        A, backends=["cpu", "vulkan"], devices='echo "  Vulkan0: llvmpipe (LLVM 21) (9 MiB, 8 MiB free)"'
    )
    result = host.run(A, archive, allow_software_devices=True)
    assert [(device["name"], device["software"]) for device in result["devices"]] == [("Vulkan0", True)]


def test_the_environment_reaches_the_question_for_devices(host):
    archive = host.artifact(A, devices='echo "  Vulkan$GGML_VK_VISIBLE_DEVICES: Radeon (9 MiB, 8 MiB free)"')
    assert host.run(A, archive, environment={"GGML_VK_VISIBLE_DEVICES": 0})["devices"][0]["name"] == "Vulkan0"


def test_a_damaged_archive_is_refused(host):
    host.run(A, host.artifact(A))
    archive = host.artifact(B)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(Exit, match="damaged"):
        raise Exit(host.run(B, archive))
    assert host.releases == [A]


def test_no_room_is_refused_with_the_figures(host, monkeypatch):
    archive = host.artifact(A)
    full = type("Full", (), {"f_bavail": 0, "f_frsize": 4096})()
    monkeypatch.setattr(llama_release.os, "statvfs", lambda path: full)
    with pytest.raises(Exit, match=r"takes up to 0 MiB below .*, and 0 MiB are free there: free 1 MiB"):
        raise Exit(host.run(A, archive))
    assert host.releases == []


def test_a_damaged_release_is_named(host):
    host.run(A, host.artifact(A))
    (host.root / "releases" / A / "bin/llama-server").write_text("", encoding="utf-8")
    with pytest.raises(Exit, match=r"bin/llama-server has 0 bytes"):
        raise Exit(host.run(A))


def test_a_name_that_is_no_fingerprint(host):
    with pytest.raises(Exit, match="a fingerprint is 32 digits"):
        raise Exit(host.run("../../etc"))


def test_what_an_interrupted_installation_left_is_removed(host):
    host.run(A, host.artifact(A))
    (host.root / "releases" / f".staging-{B}-4194304").mkdir()
    assert host.run(A, check=True)["changed"]
    assert host.run(A)["changed"]
    assert host.releases == [A]
    assert not host.run(A)["changed"]


def test_labels_are_asked_for_before_the_release_appears(host):
    log = host.selinux(f"test ! -e {host.root}/releases/{A}")
    assert host.run(A, host.artifact(A))["changed"]
    staging = host.root / "releases" / f".staging-{A}-{os.getpid()}"
    assert log.read_text(encoding="utf-8").splitlines() == [f"-RF {staging}", f"{staging}/bin"]
    host.run(A)
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2


def test_a_release_that_cannot_be_labelled_does_not_appear(host):
    host.selinux("echo no such context >&2; exit 255")
    with pytest.raises(Exit, match=rf"restorecon .*{A}.*: no such context"):
        raise Exit(host.run(A, host.artifact(A)))
    assert host.releases == []
    host.selinux(None)
    with pytest.raises(Exit, match="SELinux is on, but there is no restorecon"):
        raise Exit(host.run(A, host.top / f"{A}.tar.gz"))
    assert host.releases == []


def test_nothing_is_labelled_where_selinux_is_off(host, monkeypatch):
    log = host.selinux("exit 1")
    monkeypatch.setattr(llama_release, "SELINUX", host.top / "not-there")
    assert host.run(A, host.artifact(A))["changed"]
    assert not log.exists()
