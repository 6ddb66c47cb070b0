# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
import yaml
from ansible_collections.llamafleet.turboquant.plugins.module_utils import _hardware

DATA = Path(__file__).parents[3] / "data" / "hardware"
MACHINES = sorted(path.stem for path in DATA.glob("*.yml"))


def load(name):
    return yaml.safe_load((DATA / f"{name}.yml").read_text(encoding="utf-8"))


def materialise(files, root):
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    return root


@pytest.fixture
def machine(tmp_path):
    """Return a function that lays out a captured machine, with some files changed (None takes one away)."""

    def lay_out(name, **changes):
        files = load(name)["files"]
        for path, content in changes.get("changes", {}).items():
            assert path in files or content is not None, f"{name} has no file {path}"
            if content is None:
                del files[path]
            else:
                files[path] = content
        return materialise(files, tmp_path)

    return lay_out


def ids(result):
    return [problem["id"] for problem in result["problems"]]


def test_all_machines_of_the_issue_are_there():
    assert set(MACHINES) >= {
        "rtx_4090",
        "rtx_3090_pair",
        "rtx_5090",
        "dgx_spark_gb10",
        "rx_7900_xtx",
        "radeon_r9700",
        "strix_halo_64",
        "strix_halo_128",
        "no_gpu",
        "vm_virtio",
    }


@pytest.mark.parametrize("name", MACHINES)
def test_captured_machine(name, tmp_path):
    capture = load(name)
    assert capture["sources"]
    result = _hardware.read_hardware(str(materialise(capture["files"], tmp_path)))
    if os.environ.get("LLAMAFLEET_SHOW") == name:
        print(yaml.safe_dump({"expected": result}, sort_keys=False, width=110))
    assert result == capture["expected"]


@pytest.mark.parametrize("name", MACHINES)
def test_no_file_of_a_capture_is_needed(name, tmp_path):
    """Take each file away in turn: the rest is still reported, and nothing raises."""
    files = load(name)["files"]
    root = materialise(files, tmp_path)
    for path in files:
        (root / path.lstrip("/")).unlink()
        result = _hardware.read_hardware(str(root))
        assert set(result) == {"gpus", "memory", "kernel", "firmware", "problems"}
        (root / path.lstrip("/")).write_text(files[path], encoding="utf-8")


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize(
    "junk", ["", "\n", "nonsense", "-", "\x00\xff", "9" * 400, "a,b,c,d\n\n=:=\n", "\t\t 1\n" * 50]
)
def test_no_content_of_a_file_raises(name, junk, tmp_path):
    files = load(name)["files"]
    root = materialise(files, tmp_path)
    for path in files:
        (root / path.lstrip("/")).write_text(junk, encoding="latin-1")
        _hardware.read_hardware(str(root))
        (root / path.lstrip("/")).write_text(files[path], encoding="utf-8")


GPU = "/sys/bus/pci/devices/0000:c6:00.0"
KFD = "/sys/class/kfd/kfd/topology/nodes/1/properties"
PROC = "/proc/driver/nvidia"


@pytest.mark.parametrize(
    ("name", "path", "content", "identifier", "words"),
    [
        ("strix_halo_128", f"{GPU}/mem_info_gtt_total", None, "missing", "mem_info_gtt_total is missing"),
        ("strix_halo_128", f"{GPU}/mem_info_gtt_total", "many\n", "malformed", "'many'"),
        ("strix_halo_128", f"{GPU}/mem_info_vram_total", "", "malformed", "''"),
        ("strix_halo_128", f"{GPU}/uevent", "DRIVER=amdgpu\nPCI_CLASS=zz\nPCI_ID=1002:1586\n", "malformed", "'zz'"),
        ("strix_halo_128", KFD, None, "kfd_node_missing", "no node in KFD's topology"),
        ("strix_halo_128", KFD, "simd_count 80\n", "malformed", "without its gfx_target_version"),
        ("strix_halo_128", KFD, "gfx_target_version gfx1151\n", "malformed", "'gfx_target_version gfx1151'"),
        ("strix_halo_128", "/sys/module/ttm/parameters/pages_limit", "lots\n", "malformed", "'lots'"),
        ("strix_halo_128", "/proc/meminfo", None, "missing", "/proc/meminfo is missing"),
        ("strix_halo_128", "/proc/meminfo", "MemTotal: 5 kB\n", "malformed", "'MemAvailable: N kB'"),
        ("strix_halo_128", "/proc/cmdline", None, "missing", "/proc/cmdline is missing"),
        ("strix_halo_128", "/.captured/stat", "ls -l of something\n", "malformed", "'ls -l of something'"),
        ("strix_halo_128", "/.captured/vulkaninfo", "GPU0:\n\tvendorID = AMD\n", "malformed", "without vendorID"),
        ("rtx_4090", f"{PROC}/version", None, "missing", "/proc/driver/nvidia/version is missing"),
        ("rtx_4090", f"{PROC}/version", "NVRM version: none\n", "malformed", "names no version"),
        ("rtx_4090", f"{PROC}/gpus/0000:01:00.0/information", "IRQ: 77\n", "malformed", "no line 'Model: ...'"),
        ("rtx_4090", "/.captured/nvidia-smi", None, "nvidia_smi_missing", "nvidia-smi is not installed"),
        ("rtx_4090", "/.captured/nvidia-smi", "No devices were found\n", "malformed", "'No devices were found'"),
        ("rtx_4090", "/.captured/nvidia-smi", "01:00.0, RTX, [GPU is lost], 1, 8.9\n", "malformed", "'[GPU is lost]'"),
        # A discrete card that cannot tell its memory is broken; only a part known to share the RAM may say so.
        ("rtx_4090", "/.captured/nvidia-smi", "01:00.0, RTX, [N/A], [N/A], 8.9\n", "malformed", "'[N/A]'"),
        ("rtx_4090", "/.captured/nvidia-smi", "01:00.0, RTX, 9, 5, [N/A]\n", "malformed", "compute_cap"),
        ("rtx_4090", "/.captured/nvidia-smi", "02:00.0, RTX, 9, 5, 8.9\n", "nvidia_smi_lacks_gpu", "0000:01:00.0"),
    ],
)
def test_a_bad_file_is_a_problem_that_names_it(machine, name, path, content, identifier, words):
    result = _hardware.read_hardware(str(machine(name, changes={path: content})))
    found = [problem for problem in result["problems"] if problem["id"] == identifier]
    assert any(words in problem["message"] for problem in found), result["problems"]
    for problem in result["problems"]:
        assert set(problem) == {"id", "severity", "message", "source", "gpu"}
        assert problem["source"]


def test_an_unreadable_file_is_a_problem(machine, monkeypatch):
    root = machine("strix_halo_128")
    opened = Path.open

    def refuse(self, *args, **kwargs):
        if self.name in ("mem_info_vram_total", "properties"):
            raise PermissionError(1, "Operation not permitted", str(self))
        return opened(self, *args, **kwargs)

    # The tests may run as root, whom no mode of a file stops.
    monkeypatch.setattr(Path, "open", refuse)
    result = _hardware.read_hardware(str(root))
    assert "unreadable" in ids(result)
    assert result["gpus"][0]["vram_total_bytes"] is None
    assert any(
        "mem_info_vram_total cannot be read: Operation not permitted" in p["message"] for p in result["problems"]
    )


def test_an_unlisted_folder_is_a_problem(machine, monkeypatch):
    root = machine("strix_halo_128")
    listed = os.listdir

    def refuse(path):
        if str(path).endswith("/nodes"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    result = _hardware.read_hardware(str(root))
    assert any("cannot be listed: Permission denied" in problem["message"] for problem in result["problems"])
    assert result["gpus"][0]["backends"] == ["vulkan"]


def test_a_device_without_uevent_is_read_from_the_single_files(machine):
    changes = {
        f"{GPU}/uevent": None,
        f"{GPU}/vendor": "0x1002\n",
        f"{GPU}/device": "0x1586\n",
        f"{GPU}/class": "0x038000\n",
    }
    root = machine("strix_halo_128", changes=changes)
    (root / GPU.lstrip("/") / "driver").symlink_to("../../../../bus/pci/drivers/amdgpu")
    expected = load("strix_halo_128")["expected"]
    assert _hardware.read_hardware(str(root)) == expected


def test_a_card_that_only_sys_class_drm_shows(tmp_path):
    base = "/sys/class/drm/card1/device"
    files = {path.replace(GPU, base): text for path, text in load("strix_halo_128")["files"].items()}
    result = _hardware.read_hardware(str(materialise(files, tmp_path)))
    assert result["gpus"] == load("strix_halo_128")["expected"]["gpus"]


@pytest.mark.parametrize(
    ("cuda", "identifier", "numbers"),
    [
        ("13.2", "driver_below_cuda_floor", ("580", "575.57.08")),
        ("12.9", None, ()),
        ("11.7", "cuda_not_for_gpu", ("8.9", "11.8", "11.7")),
    ],
)
def test_cuda_against_driver_and_gpu(machine, cuda, identifier, numbers):
    version = load("rtx_4090")["files"][f"{PROC}/version"].replace("580.126.20", "575.57.08")
    root = machine("rtx_4090", changes={f"{PROC}/version": version})
    result = _hardware.read_hardware(str(root), cuda_version=cuda)
    found = [problem for problem in result["problems"] if problem["severity"] == "error"]
    assert [problem["id"] for problem in found] == ([identifier] if identifier else [])
    for number in numbers:
        assert number in found[0]["message"]


def test_cuda_13_dropped_volta(machine):
    root = machine("rtx_4090", changes={"/.captured/nvidia-smi": "01:00.0, Tesla V100, 16384, 16000, 7.0\n"})
    result = _hardware.read_hardware(str(root), cuda_version="13.0")
    assert "cuda_not_for_gpu" in ids(result)
    (problem,) = [problem for problem in result["problems"] if problem["id"] == "cuda_not_for_gpu"]
    assert "7.0, which CUDA 12.9 was the last to compile for, and CUDA 13.0 is chosen" in problem["message"]


def test_a_gpu_without_driver_and_one_with_nouveau(machine):
    name = "/sys/bus/pci/devices/0000:01:00.0/uevent"
    record = load("rtx_4090")["files"][name]
    bare = _hardware.read_hardware(str(machine("rtx_4090", changes={name: record.replace("DRIVER=nvidia\n", "")})))
    assert bare["gpus"][0]["driver"] is None
    assert bare["gpus"][0]["backends"] == []
    assert "no_driver" in ids(bare)
    root = machine("rtx_4090", changes={name: record.replace("DRIVER=nvidia", "DRIVER=nouveau")})
    free = _hardware.read_hardware(str(root))
    assert free["gpus"][0]["backends"] == ["vulkan"]
    assert "nouveau" in ids(free)


def test_llvmpipe_in_place_of_the_gpu_takes_the_vulkan_backend_away(machine):
    only_cpu = load("vm_virtio")["files"]["/.captured/vulkaninfo"]
    result = _hardware.read_hardware(str(machine("strix_halo_128", changes={"/.captured/vulkaninfo": only_cpu})))
    assert result["gpus"][0]["backends"] == ["rocm"]
    (problem,) = [problem for problem in result["problems"] if problem["id"] == "vulkan_device_missing"]
    assert "llvmpipe" in problem["message"]


def test_a_node_of_a_group_without_a_name(machine):
    nodes = "/dev/kfd 660 110 UNKNOWN\n/dev/dri/card1 660 39 video\n/dev/dri/renderD128 666 105 render\n"
    result = _hardware.read_hardware(str(machine("strix_halo_128", changes={"/.captured/stat": nodes})))
    (problem,) = result["problems"]
    assert problem["id"] == "node_without_group"
    assert "/dev/kfd has mode 0660 and the group number 110 without a name" in problem["message"]


def test_live_nodes_are_looked_at_with_their_group(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kfd").write_text("")
    (tmp_path / "dev" / "kfd").chmod(0o640)
    tree = _hardware.Tree(str(tmp_path))
    node = _hardware._node_entry(tree, "/dev/kfd", {})
    assert node["mode"] == "0640"
    assert node["gid"] == (tmp_path / "dev" / "kfd").stat().st_gid
    assert _hardware._node_entry(tree, "/dev/absent", {}) is None


@pytest.mark.parametrize(
    ("version", "name"),
    [(110501, "gfx1151"), (110000, "gfx1100"), (120001, "gfx1201"), (90010, "gfx90a"), (90402, "gfx942")],
)
def test_gfx_name(version, name):
    assert _hardware.gfx_name(version) == name


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000000F:01:00.0", "000f:01:00.0"),
        ("00000000:0A:00.0", "0000:0a:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("01:00.8", None),
        ("GPU", None),
    ],
)
def test_pci_address(text, address):
    assert _hardware.pci_address(text) == address


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("580.126.20", "13.0"),
        ("575.57.08", "12.9"),
        ("599.1", "13.2"),
        ("9999.1", "13.3"),
        ("390.1", None),
        (None, None),
    ],
)
def test_cuda_driver_max(driver, cuda):
    assert _hardware.cuda_driver_max(driver) == cuda


def script(folder, name, text):
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_tools_that_hang_are_left_behind(tmp_path):
    """Neither a program that ignores signals nor one whose child keeps its output open delays the answer."""
    commands = {
        "deaf": [script(tmp_path, "deaf", "trap '' TERM INT HUP\nwhile :; do sleep 5; done\n")],
        "parent": [script(tmp_path, "parent", "sleep 5 &\nwait\n")],
        "good": [script(tmp_path, "good", "echo fine\n")],
        "bad": [script(tmp_path, "bad", "echo 'Driver/library version mismatch' >&2\nexit 18\n")],
        "absent": ["llamafleet-no-such-tool"],
    }
    began = time.monotonic()
    results = _hardware.run_tools(commands, 0.4)
    assert time.monotonic() - began < 1.2
    assert {name: result.status for name, result in results.items()} == {
        "deaf": "timeout",
        "parent": "timeout",
        "good": "ok",
        "bad": "failed",
        "absent": "missing",
    }
    assert results["good"].output == "fine\n"
    assert "mismatch" in results["bad"].detail


def test_a_program_that_cannot_be_started_is_a_failure(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    assert _hardware.run_tools({"broken": [str(broken)]}, 1)["broken"].status == "failed"


@pytest.mark.parametrize(
    ("result", "identifier", "words"),
    [
        (_hardware.ToolResult("timeout", detail="no answer in 1.5 s"), "tool_timeout", "no answer in 1.5 s"),
        (
            _hardware.ToolResult("failed", "Failed to initialize NVML: Driver/library version mismatch\n", "code 18"),
            "tool_failed",
            "reboot",
        ),
    ],
)
def test_a_failing_nvidia_smi_leaves_the_rest(machine, result, identifier, words):
    root = machine("rtx_4090")
    found = _hardware.read_hardware(str(root), tools={"nvidia-smi": result})
    assert identifier in ids(found)
    assert any(words in problem["message"] for problem in found["problems"])
    assert found["gpus"][0]["name"] == "NVIDIA GeForce RTX 4090"
    assert found["gpus"][0]["vram_total_bytes"] is None


def test_this_machine_is_read_in_time():
    began = time.monotonic()
    result = _hardware.read_hardware("/")
    assert time.monotonic() - began < 2
    assert result["memory"]["ram_total_bytes"] > 0
    assert result["kernel"]["release"] == os.uname().release
