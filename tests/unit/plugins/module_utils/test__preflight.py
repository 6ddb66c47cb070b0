# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import lzma
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _hardware, _preflight
from ansible_collections.llamafleet.turboquant.plugins.module_utils._preflight import Wishes

CAPTURES = Path(__file__).parents[3] / "data" / "hardware"
GIB = 1024**3
FEDORA = {
    "/etc/os-release": 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=44\nPRETTY_NAME="Fedora Linux 44"\n',
    "/run/systemd/system/x": "",
    "/proc/sys/kernel/arch": "x86_64\n",
}
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
MODULE = "/lib/modules/6.19.5-200.fc44.x86_64/extra/nvidia/nvidia.ko"
MARK = b"~Module signature appended~\n"


class Host:
    """A captured machine that runs Fedora 44, with some files changed (None takes one away)."""

    def __init__(self, root, name, changes=()):
        files = {**FEDORA, **yaml.safe_load((CAPTURES / f"{name}.yml").read_text(encoding="utf-8"))["files"]}
        files.update(changes)
        for path, content in files.items():
            if content is not None:
                target = root / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.root = str(root)

    def judge(self, **wishes):
        hardware = _hardware.read_hardware(self.root, cuda_version=wishes.get("cuda_version"))
        return _preflight.judge(_hardware.Tree(self.root), hardware, Wishes(**wishes))


def named(findings):
    return {finding["id"]: finding["severity"] for finding in findings}


def message(findings, identifier):
    (found,) = [finding["message"] for finding in findings if finding["id"] == identifier]
    return found


def test_a_good_host_has_no_finding(tmp_path):
    host = Host(tmp_path, "rtx_4090")
    assert host.judge(backends=["cuda"], cuda_version="13.0", plan={"CUDA0": 20 * GIB, "host": 4 * GIB}) == []
    assert _preflight.report([], strict=False) == "preflight: nothing found"


@pytest.mark.parametrize(
    ("release", "identifier", "severity", "words"),
    [
        ("ID=fedora\nVERSION_ID=43\n", None, None, ""),
        ("ID=fedora\nVERSION_ID=42\n", "release_ended", "warning", "Fedora 42 is past its end"),
        ("ID=fedora\nVERSION_ID=41\n", "release_too_old", "refusal", "Fedora 41 is older"),
        (
            "ID=fedora\nVERSION_ID=45\n",
            "release_untested",
            "warning",
            "Fedora 45 is newer than the releases that are tested",
        ),
        ("ID=fedora\nVERSION_ID=rawhide\n", "release_unknown", "refusal", "'rawhide', which is no number"),
        (
            'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
            "not_fedora",
            "refusal",
            "runs Debian GNU/Linux 13",
        ),
        # A derivative has other packages under the same names.
        ("ID=nobara\nID_LIKE=fedora\nVERSION_ID=44\n", "not_fedora", "refusal", "runs nobara"),
        (None, "not_fedora", "refusal", "a system without os-release"),
    ],
)
def test_release(tmp_path, release, identifier, severity, words):
    findings = Host(tmp_path, "no_gpu", {"/etc/os-release": release}).judge()
    assert named(findings) == ({identifier: severity} if identifier else {})
    assert words in (findings[0]["message"] if findings else "")


def test_no_systemd_is_refused(tmp_path):
    findings = Host(tmp_path, "no_gpu", {"/run/systemd/system/x": None}).judge()
    assert named(findings) == {"no_systemd": "refusal"}


def test_architecture(tmp_path):
    host = Host(tmp_path, "no_gpu", {"/proc/sys/kernel/arch": "riscv64\n"})
    assert "the processor is riscv64; x86_64 and aarch64 are supported" in message(host.judge(), "architecture")
    host = Host(tmp_path, "no_gpu", {"/proc/sys/kernel/arch": "aarch64\n"})
    assert host.judge() == []
    assert named(host.judge(backends=["rocm"]))["rocm_architecture"] == "refusal"


@pytest.mark.parametrize(
    ("path", "words"), [("/run/ostree-booted", "an? ostree variant"), ("/usr/lib/bootc/x", "a bootc image")]
)
def test_image_based_variants_are_a_warning(tmp_path, path, words):
    findings = Host(tmp_path, "no_gpu", {path: ""}).judge()
    assert named(findings) == {"image_based": "warning"}
    assert _preflight.re.search(words, findings[0]["message"])


def test_a_driver_below_the_floor_of_cuda_is_refused_with_both_numbers(tmp_path):
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n"
    host = Host(tmp_path, "rtx_3090_pair", {"/proc/driver/nvidia/version": version})
    findings = host.judge(backends=["cuda"], cuda_version="13.2")
    assert named(findings) == {"driver_too_old": "refusal"}  # once, though there are two cards
    assert "CUDA 13.2 needs the NVIDIA driver 580 or newer, and the driver here is 575.57.08" in findings[0]["message"]
    assert host.judge(backends=["cuda"], cuda_version="12.9") == []
    assert host.judge(backends=["vulkan"], cuda_version="13.2") == []


def test_a_gpu_that_the_chosen_cuda_cannot_compile_for_is_refused(tmp_path):
    findings = Host(tmp_path, "rtx_5090").judge(backends=["cuda"], cuda_version="12.6")
    assert named(findings)["cuda_not_for_gpu"] == "refusal"


@pytest.mark.parametrize(
    ("name", "content", "backends", "expected"),
    [
        (MODULE, b"\x7fELF code", ["cuda"], {"unsigned_module": "refusal"}),
        (MODULE, b"\x7fELF code", ["vulkan"], {"unsigned_module": "warning"}),
        (MODULE + ".xz", lzma.compress(b"\x7fELF code"), ["cuda"], {"unsigned_module": "refusal"}),
        (MODULE, b"\x7fELF code" + MARK, ["cuda"], {"module_not_trusted": "warning"}),
        (MODULE + ".xz", lzma.compress(b"\x7fELF code" + MARK), ["cuda"], {"module_not_trusted": "warning"}),
        # Whether such a file is signed cannot be seen, so it is not called unsigned.
        (MODULE + ".zst", b"(\xb5/\xfd", ["cuda"], {"module_not_trusted": "warning"}),
        (MODULE + ".xz", b"no archive", ["cuda"], {"module_not_trusted": "warning"}),
    ],
)
def test_secure_boot(tmp_path, name, content, backends, expected):
    host = Host(tmp_path, "rtx_4090", {SECURE_BOOT: b"\x06\x00\x00\x00\x01", name: content})
    findings = host.judge(backends=backends)
    assert named(findings) == expected
    assert name in findings[0]["message"]


@pytest.mark.parametrize(
    "changes",
    [
        {SECURE_BOOT: b"\x06\x00\x00\x00\x00", MODULE: b"\x7fELF code"},
        {MODULE: b"\x7fELF code"},
        # The module is loaded, so the kernel has accepted it.
        {SECURE_BOOT: b"\x06\x00\x00\x00\x01", MODULE: b"\x7fELF code", "/sys/module/nvidia/version": "580.126.20"},
    ],
)
def test_secure_boot_off_or_passed(tmp_path, changes):
    assert Host(tmp_path, "rtx_4090", changes).judge(backends=["cuda"]) == []


@pytest.mark.parametrize(
    ("name", "backends", "plan", "expected", "words"),
    [
        ("rtx_4090", ["cuda"], {"CUDA0": 23 * GIB}, {}, ""),
        (
            "rtx_4090",
            ["cuda"],
            {"CUDA0": 25 * GIB},
            {"memory_short": "refusal"},
            "25.0 GiB on CUDA0, which has 24.0 GiB",
        ),
        ("rtx_4090", ["cuda"], {"CUDA1": GIB}, {"device_missing": "refusal"}, "on CUDA1; devices there: CUDA0, host"),
        ("rtx_4090", ["cuda"], {"host": 99 * GIB}, {"memory_short": "refusal"}, "on host, which has 62.7 GiB"),
        ("strix_halo_128", ["rocm"], {"ROCm0": 100 * GIB, "host": GIB}, {}, ""),
        (
            "strix_halo_128",
            ["rocm"],
            {"ROCm0": 110 * GIB, "host": 2 * GIB},
            {"memory_reserve": "warning"},
            "the plan takes 112.0 GiB of it and leaves less than the reserve of 12.1 GiB",
        ),
        (
            "strix_halo_128",
            ["rocm"],
            {"ROCm0": 111 * GIB, "host": 20 * GIB},
            {"memory_reserve": "refusal"},
            "131.0 GiB",
        ),
        ("dgx_spark_gb10", ["cuda"], {"CUDA0": 119 * GIB}, {"memory_reserve": "warning"}, "share 121.7 GiB"),
    ],
)
def test_memory_against_the_plan(tmp_path, name, backends, plan, expected, words):
    changes = {"/proc/sys/kernel/arch": "aarch64\n"} if name == "dgx_spark_gb10" else {}
    findings = Host(tmp_path, name, changes).judge(backends=backends, plan=plan)
    assert named(findings) == expected
    assert words in (findings[0]["message"] if findings else "")


def test_an_apu_before_its_reboot_is_compared_with_the_limit_to_come(tmp_path):
    # The kernel's default: half of the RAM.
    half = {
        "/sys/module/ttm/parameters/pages_limit": "15887307\n",
        "/sys/bus/pci/devices/0000:c6:00.0/mem_info_gtt_total": "65074409472\n",
    }
    host = Host(tmp_path, "strix_halo_128", half)
    plan = {"ROCm0": 100 * GIB}
    now = host.judge(backends=["rocm"], plan=plan)
    assert named(now)["memory_short"] == "refusal"
    assert "memory_short" not in named(host.judge(backends=["rocm"], plan=plan, gtt_bytes=108 * GIB))
    assert "memory_short" in named(host.judge(backends=["rocm"], plan=plan, gtt_bytes=99 * GIB))


def test_what_the_plan_says_is_reported_with_all_else(tmp_path):
    said = [
        {"severity": "refusal", "text": "instance 'chat': refused: f16/q8_0 aborts"},
        {"severity": "warning", "text": "instance 'code': unknown: the header cannot be read"},
    ]
    findings = Host(tmp_path, "rtx_4090").judge(backends=["cuda"], plan={"CUDA1": GIB}, plan_findings=said)
    assert named(findings) == {"plan_refused": "refusal", "device_missing": "refusal", "plan_unknown": "warning"}
    assert message(findings, "plan_refused") == said[0]["text"]


def test_a_plan_for_a_host_whose_memory_is_unknown_is_a_warning(tmp_path):
    host = Host(tmp_path, "rtx_4090", {"/.captured/nvidia-smi": "01:00.0, RTX, [N/A], [N/A], 8.9\n"})
    assert named(host.judge(backends=["cuda"], plan={"CUDA0": GIB}))["memory_unknown"] == "warning"


MOUNTS = """\
22 1 0:20 / / rw - btrfs /dev/nvme0n1p3 rw,subvol=/root
30 22 0:20 / /var/lib rw - btrfs /dev/nvme0n1p3 rw,subvol=/var
31 22 8:1 / /srv\\040models rw - xfs /dev/sda1 rw
32 22 0:5 / /run rw - tmpfs tmpfs rw
33 22 0:6 / /run/user rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/opt/llamafleet", ("/", "/dev/nvme0n1p3")),
        ("/var/lib/llamafleet", ("/var/lib", "/dev/nvme0n1p3")),
        ("/var/library", ("/", "/dev/nvme0n1p3")),
        ("/srv models/gguf", ("/srv models", "/dev/sda1")),
        ("/run/user/0", ("/run/user", "/run/user")),
    ],
)
def test_mount_of(path, expected):
    assert _preflight.mount_of(MOUNTS, path) == expected


def test_needs_on_one_file_system_are_added_up(tmp_path, monkeypatch):
    host = Host(tmp_path, "no_gpu", {"/proc/self/mountinfo": "22 1 0:20 / / rw - btrfs /dev/nvme0n1p3 rw\n"})
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_bavail=20 * 2**18, f_frsize=4096))
    disk = [
        {
            "purpose": "the build",
            "path": "/var/lib/llamafleet/build",
            "bytes": 6 * GIB,
            "unless_exists": "/opt/x/current",
        },
        {"purpose": "the models", "path": "/var/lib/llamafleet/models", "bytes": 17 * GIB, "unless_exists": None},
    ]
    findings = host.judge(disk=disk)
    assert named(findings) == {"disk_full": "refusal"}
    for words in (
        "23.0 GiB are needed on the file system at / and 20.0 GiB are free",
        "6.0 GiB for the build in /var/lib/llamafleet/build",
        "Free 3.0 GiB",
    ):
        assert words in findings[0]["message"]
    (tmp_path / "opt/x/current").mkdir(parents=True)
    assert host.judge(disk=disk) == []


def test_a_file_system_that_cannot_be_asked_is_a_warning(tmp_path, monkeypatch):
    def refuse(_path):
        raise OSError(5, "Input/output error")

    host = Host(tmp_path, "no_gpu")
    monkeypatch.setattr(os, "statvfs", refuse)
    findings = host.judge(disk=[{"purpose": "the models", "path": "/var/lib/x", "bytes": 1}])
    assert named(findings) == {"disk_unknown": "warning"}


@pytest.mark.parametrize(
    ("name", "backends", "expected"),
    [
        (
            "strix_halo_64",
            ["rocm"],
            {
                "kernel_too_old": "warning",
                "firmware_known_bad": "warning",
                "gtt_limits_disagree": "warning",
                "kernel_argument_ignored": "warning",
            },
        ),
        (
            "strix_halo_64",
            ["vulkan"],
            {
                "kernel_too_old": "note",
                "firmware_known_bad": "note",
                "gtt_limits_disagree": "warning",
                "kernel_argument_ignored": "warning",
            },
        ),
        ("strix_halo_128_carveout", ["cpu"], {"carveout_large": "note"}),
        # The role gpu_access puts both right later in the same run.
        ("rtx_5090", ["cuda"], {"nvidia_uvm_missing": "note"}),
        ("radeon_r9700", ["rocm"], {"node_without_group": "note"}),
        ("no_gpu", ["cuda"], {"no_gpu_for_backend": "warning"}),
        ("vm_virtio", ["vulkan"], {"no_gpu_for_backend": "warning"}),
    ],
)
def test_problems_of_the_hardware_count_by_backend(tmp_path, name, backends, expected):
    assert named(Host(tmp_path, name).judge(backends=backends)) == expected


@pytest.mark.parametrize(
    ("build", "identifier", "severity", "words"),
    [
        ("upstream-b11434", None, None, ""),
        (
            "upstream-b7000",
            "build_lacks_fixes",
            "warning",
            "CVE-2026-33298: a crafted GGUF file overflows a size, fixed in b7824",
        ),
        ("b3000", "build_lacks_fixes", "warning", "fixed in b3561"),
        ("upstream-b8500", "build_lacks_fixes", "warning", "the architecture gemma4 is unknown to it; b8639 has it"),
        ("turboquant-b10000", "build_known_bad", "refusal", "the output with cache type turbo4 is corrupt"),
        ("turboquant-b10514", None, None, ""),
        ("turboquant-69d8e4be", "build_open_faults", "note", "llama.cpp #24786"),
        ("turboquant-deadbeef", "build_unknown", "note", "turboquant-deadbeef is not in the table"),
    ],
)
def test_builds(build, identifier, severity, words):
    findings = _preflight.check_builds([build])
    found = {(finding.id, finding.severity) for finding in findings}
    assert found == ({(identifier, severity)} if identifier else set())
    assert words in "; ".join(finding.message for finding in findings)
    if build == "upstream-b7000":
        assert "b5721" not in "; ".join(finding.message for finding in findings)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_build_that_is_bad_on_this_gpu_is_refused_before_anything_changes(allowed):
    def found(targets, backends=("rocm",)):
        rows = _preflight.check_builds(["turboquant-69d8e4be"], backends, targets, allow_known_bad=allowed)
        return [finding for finding in rows if finding.id == "build_known_bad"]

    (finding,) = found(["gfx1152"])
    assert finding.severity == ("warning" if allowed else "refusal")
    assert "take the backend vulkan for these GPUs" in finding.message
    assert ("set llama_build_allow_known_bad" in finding.message) is not allowed
    assert found(["gfx1151"]) == []
    assert found(["gfx1152"], ["vulkan"]) == []
    # What holds for every GPU can be allowed as well.
    (finding,) = _preflight.check_builds(["turboquant-b10000"], allow_known_bad=allowed)
    assert finding.severity == ("warning" if allowed else "refusal")


def test_the_gpus_of_a_build_are_those_it_names_or_those_of_the_host(tmp_path):
    def refused(**wishes):
        findings = Host(tmp_path, "strix_halo_128").judge(backends=["rocm"], builds=["upstream-b10500"], **wishes)
        return "build_known_bad" in [finding["id"] for finding in findings]

    assert refused()
    assert not refused(gpu_targets=["gfx1100"])
    assert refused(gpu_targets=["gfx1100", "gfx1151"])


def test_the_report_lists_all_findings_and_refusals_first(tmp_path):
    changes = {"/etc/os-release": "ID=debian\n", "/run/systemd/system/x": None, "/run/ostree-booted": ""}
    findings = Host(tmp_path, "rtx_5090", changes).judge(backends=["cuda"], cuda_version="12.6")
    severities = [finding["severity"] for finding in findings]
    assert severities == ["refusal", "refusal", "refusal", "warning", "note"]
    lines = _preflight.report(findings, strict=False).splitlines()
    assert lines[0] == "preflight refused: 3 refusals, 1 warning, 1 note"
    assert len(lines) == 6
    assert lines[1].startswith("  REFUSAL  not_fedora: the host runs debian")
    assert lines[1].endswith("[os-release]")


def test_strict_turns_warnings_into_refusals(tmp_path):
    findings = Host(tmp_path, "no_gpu", {"/etc/os-release": "ID=fedora\nVERSION_ID=42\n"}).judge()
    assert not _preflight.refused(findings, strict=False)
    assert _preflight.refused(findings, strict=True)
    assert _preflight.report(findings, strict=False).startswith("preflight passed: 1 warning\n")
    assert "preflight refused: 1 warning, warnings count as refusals (preflight_strict)" in _preflight.report(
        findings, True
    )
    notes = Host(tmp_path, "rtx_5090", {"/etc/os-release": "ID=fedora\nVERSION_ID=44\n"}).judge(backends=["cuda"])
    assert named(notes) == {"nvidia_uvm_missing": "note"}
    assert not _preflight.refused(notes, strict=True)
