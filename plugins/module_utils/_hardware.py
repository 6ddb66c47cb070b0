# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What GPUs and how much memory a machine has, read from the kernel's own files.

Private to the collection: may change at any time, not for use from elsewhere.

Nothing here raises for what it finds on a machine. A file that is missing, unreadable or not of its
documented form becomes an entry of ``problems`` that names the file, and the figure it would have
given becomes None.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.llamafleet.turboquant.plugins.module_utils._gtt import PAGE_BYTES, default_reserve
from ansible_collections.llamafleet.turboquant.plugins.module_utils._toolchain import GPUS

MIB = 1024 * 1024
GIB = 1024 * MIB

NVIDIA = "10de"
AMD = "1002"
INTEL = "8086"
# Only makers of GPUs that llama.cpp can compute on: the display adapters of virtual machines
# (virtio 1af4, QXL 1b36, bochs 1234) and of management controllers (ASPEED 1a03, Matrox 102b) are
# display classes on the PCI bus too, and a model placed on them would run on the CPU.
VENDORS = {NVIDIA: "nvidia", AMD: "amd", INTEL: "intel"}

# PCI classes: display controllers, and processing accelerators (an MI300X has no display class).
_DISPLAY_CLASS = 0x03
_ACCELERATOR_CLASS = 0x1200

# The GPUs of AMD's APUs. The kernel tells user space this only by an ioctl on the render node
# (AMDGPU_IDS_FLAGS_FUSION),
# for which one must be in the group that this collection may still have to give.
# Source: ROCm/TheRock RELEASES.md, table of targets; gfx1013 is the BC-250.
APU_TARGETS = frozenset(
    [
        "gfx902",
        "gfx909",
        "gfx90c",
        "gfx1013",
        "gfx1033",
        "gfx1035",
        "gfx1036",
        "gfx1103",
        "gfx1150",
        "gfx1151",
        "gfx1152",
        "gfx1153",
    ]
)
STRIX_HALO = "gfx1151"

# NVIDIA's parts without memory of their own: nvidia-smi answers [N/A] for them and CUDA counts the machine's RAM.
_UNIFIED_NVIDIA_IDS = frozenset({"10de:2e12"})
_UNIFIED_NVIDIA_NAMES = ("NVIDIA GB10",)

# Least driver for each major CUDA release. Source: docs.nvidia.com/deploy/cuda-compatibility, minor version
# compatibility.
CUDA_FLOOR = {11: 450, 12: 525, 13: 580}
# Highest CUDA that a branch of the driver supports. Source: the release notes of the CUDA toolkits, table of drivers.
_DRIVER_BRANCH_CUDA = (
    (450, "11.0"), (455, "11.1"), (460, "11.2"), (465, "11.3"), (470, "11.4"), (495, "11.5"), (510, "11.6"),
    (515, "11.7"), (520, "11.8"), (525, "12.0"), (530, "12.1"), (535, "12.2"), (545, "12.3"), (550, "12.4"),
    (555, "12.5"), (560, "12.6"), (565, "12.7"), (570, "12.8"), (575, "12.9"), (580, "13.0"), (590, "13.1"),
    (595, "13.2"), (610, "13.3"),
)  # fmt: skip

KERNEL_FLOOR_STRIX_HALO = (6, 18, 4)
BAD_FIRMWARE = "20251125"
# Firmware menus offer 512 MiB as the least, some machines 4 GiB: above that the setting was chosen by somebody.
CARVEOUT_LIMIT = 4 * GIB

_AMD_APU_DOC = "rocm.docs.amd.com, system optimization for Strix Halo"
_CUDA_DOC = "docs.nvidia.com/deploy/cuda-compatibility"
_TOOLBOX_DOC = "github.com/kyuz0/amd-strix-halo-toolboxes, README"
_TTM_DOC = "kernel, drivers/gpu/drm/amd/amdgpu/amdgpu_ttm.c"

# Files that stand for the answers of programs in a captured tree; the name of the folder keeps them apart from the
# machine's own files.
CAPTURED = "/.captured"
TOOL_COMMANDS: Mapping[str, Sequence[str]] = {
    "nvidia-smi": (
        "nvidia-smi",
        "--query-gpu=pci.bus_id,name,memory.total,memory.free,compute_cap",
        "--format=csv,noheader,nounits",
    ),
    "vulkaninfo": ("vulkaninfo", "--summary"),
    "rpm": ("rpm", "-q", "--qf", "%{VERSION}\\n", "linux-firmware"),
}
_TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# No file read here is longer than some tens of kilobytes; pci.ids is the exception, with 1.5 MB.
_READ_LIMIT = 4 * MIB
_TOOL_OUTPUT_LIMIT = MIB


@dataclass
class ToolResult:
    """How one program ended: ``status`` is ok, missing, failed or timeout."""

    status: str
    output: str = ""
    detail: str = ""


@dataclass
class Tree:
    """A machine's files below ``root``, and what was wrong with them."""

    root: str = "/"
    problems: list[dict[str, Any]] = field(default_factory=list)

    @property
    def live(self) -> bool:
        return Path(self.root) == Path("/")

    def path(self, name: str) -> Path:
        return Path(self.root) / name.lstrip("/")

    def problem(
        self, identifier: str, message: str, source: str, severity: str = "warning", gpu: str | None = None
    ) -> None:
        entry = {"id": identifier, "severity": severity, "message": message, "source": source, "gpu": gpu}
        if entry not in self.problems:
            self.problems.append(entry)

    def text(self, name: str, required: bool = False, limit: int = _READ_LIMIT) -> str | None:
        """Return the file's text without white space at its ends, or None and, where it matters, a problem."""
        try:
            with self.path(name).open("rb") as stream:
                return stream.read(limit).decode("utf-8", "replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            if required:
                self.problem("missing", f"{name} is missing, so what it tells is not known", name)
        except OSError as exc:
            self.problem("unreadable", f"{name} cannot be read: {exc.strerror or exc}", name)
        return None

    def integer(self, name: str, required: bool = False) -> int | None:
        text = self.text(name, required=required)
        if text is None:
            return None
        if not re.fullmatch(r"-?[0-9]{1,19}", text):
            self.problem("malformed", f"{name} holds {_shown(text)}, where the kernel writes one whole number", name)
            return None
        return int(text)

    def names(self, name: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path(name)))  # noqa: PTH208 - only the names are wanted, no Path for each
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            self.problem("unreadable", f"{name} cannot be listed: {exc.strerror or exc}", name)
            return []

    def exists(self, name: str) -> bool:
        try:
            return self.path(name).exists()
        except OSError:  # a folder that may not be searched: what is in it cannot be used either
            return False


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def run_tools(commands: Mapping[str, Sequence[str]], timeout: float) -> dict[str, ToolResult]:
    """Run programs side by side and give all of them together ``timeout`` seconds.

    A vendor's tool can hang in the kernel where no signal reaches it. So nothing waits for the end of a killed one, and
    the output goes to a file: a pipe would stay open for as long as one of its children lives.
    """
    results: dict[str, ToolResult] = {}
    running: dict[str, tuple[subprocess.Popen[bytes], Any, Any]] = {}
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":" + _TOOL_PATH, "HOME": "/nonexistent"}
    for name, command in commands.items():
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            results[name] = ToolResult("missing")
            continue
        output = tempfile.TemporaryFile()  # noqa: SIM115 - it is open for as long as the program runs
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - likewise
        try:
            process = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        except OSError as exc:
            output.close()
            errors.close()
            results[name] = ToolResult("failed", detail=str(exc.strerror or exc))
            continue
        running[name] = (process, output, errors)

    deadline = time.monotonic() + timeout
    while running:
        for name, (process, output, errors) in list(running.items()):
            code = process.poll()
            if code is not None:
                text, detail = _content(output), _content(errors)
                results[name] = ToolResult(
                    "ok" if code == 0 else "failed", text, detail or f"it ended with code {code}"
                )
            elif time.monotonic() >= deadline:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except OSError:
                    process.kill()
                results[name] = ToolResult("timeout", detail=f"no answer in {timeout:g} s")
            else:
                continue
            output.close()
            errors.close()
            del running[name]
        if running:
            time.sleep(0.01)
    return results


def _content(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read(_TOOL_OUTPUT_LIMIT).decode("utf-8", "replace"))


def captured_tools(tree: Tree) -> dict[str, ToolResult]:
    """Take the programs' answers from a captured tree, where nothing is run."""
    results = {}
    for name in TOOL_COMMANDS:
        text = tree.text(f"{CAPTURED}/{name}")
        results[name] = ToolResult("missing") if text is None else ToolResult("ok", text)
    return results


def parse_version(text: str | None) -> tuple[int, ...]:
    """Return the leading numbers of a version: 6.18.9-200.fc43.x86_64 gives (6, 18, 9)."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", text or "")
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def gfx_name(version: int) -> str:
    """Return the compiler's name of KFD's decimal ``gfx_target_version``: 110501 is gfx1151, 90010 is gfx90a."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def pci_address(text: str) -> str | None:
    """Return an address as the kernel writes it: 0000000F:01:00.0 of nvidia-smi is 000f:01:00.0."""
    match = re.fullmatch(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])", text.strip())
    if not match:
        return None
    return f"{int(match.group(1) or '0', 16):04x}:{match.group(2)}:{match.group(3)}.{match.group(4)}".lower()


def cuda_driver_max(driver_version: str | None) -> str | None:
    """Return the highest CUDA that a driver supports; for a branch newer than the table, the last one known."""
    version = parse_version(driver_version)
    found = [cuda for branch, cuda in _DRIVER_BRANCH_CUDA if version and version[0] >= branch]
    return found[-1] if found else None


def driver_floor(cuda_version: str) -> int | None:
    """Return the least branch of the driver that runs programs of this CUDA, or None for a CUDA not in the table."""
    version = parse_version(cuda_version)
    if not version:
        return None
    known = [major for major in CUDA_FLOOR if major <= version[0]]
    return CUDA_FLOOR[max(known)] if known else None


def driver_too_old(cuda_version: str, driver_version: str) -> str | None:
    """Say in words why a driver cannot run programs of this CUDA, or return None where it can."""
    floor = driver_floor(cuda_version)
    version = parse_version(driver_version)
    if floor is None or not version or version[0] >= floor:
        return None
    return (
        f"CUDA {cuda_version} needs the NVIDIA driver {floor} or newer, and the driver here is {driver_version}: "
        f"llama-server would end with cudaErrorInsufficientDriver. Update the driver, or build with CUDA "
        f"{cuda_driver_max(driver_version) or 'of an older major release'}"
    )


def _key_values(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, mark, value in pairs if mark}


def _hexadecimal(text: str | None) -> int | None:
    try:
        return int(text, 16) if text else None
    except ValueError:
        return None


@dataclass
class _Device:
    """One GPU on the PCI bus, as the kernel shows it before any driver is asked."""

    address: str
    pci_id: str
    base: str
    driver: str | None
    revision: int | None
    cards: list[str]
    renders: list[str]

    @property
    def vendor(self) -> str:
        return VENDORS[self.pci_id[:4]]


def _identity(tree: Tree, base: str) -> dict[str, str] | None:
    """Return a PCI device's own record: its uevent file, or else the single files beside it."""
    record = _key_values(tree.text(f"{base}/uevent") or "")
    if "PCI_ID" in record and "PCI_CLASS" in record:
        return record
    vendor, device, kind = (tree.text(f"{base}/{name}") for name in ("vendor", "device", "class"))
    if vendor is None and device is None and kind is None:
        return None
    found = {"PCI_ID": f"{(vendor or '')[2:]}:{(device or '')[2:]}", "PCI_CLASS": (kind or "")[2:]}
    return {**record, **found}


def _devices(tree: Tree) -> list[_Device]:
    bases: dict[str, str] = {name: f"/sys/bus/pci/devices/{name}" for name in tree.names("/sys/bus/pci/devices")}
    for card in tree.names("/sys/class/drm"):
        if re.fullmatch(r"card[0-9]+", card):
            base = f"/sys/class/drm/{card}/device"
            slot = _key_values(tree.text(f"{base}/uevent") or "").get("PCI_SLOT_NAME")
            if slot is None and tree.exists(f"{base}/vendor"):
                slot = pci_address(tree.path(base).resolve().name)
            if slot is not None:
                bases.setdefault(slot, base)

    devices = []
    for name, base in sorted(bases.items()):
        record = _identity(tree, base)
        if record is None:
            continue
        kind = _hexadecimal(record["PCI_CLASS"])
        identifier = record["PCI_ID"].lower()
        if kind is None or not re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", identifier):
            tree.problem(
                "malformed",
                f"{base} gives the class {_shown(record['PCI_CLASS'])} and the id {_shown(record['PCI_ID'])}, "
                "where the "
                "kernel writes hexadecimal numbers such as 30000 and 10DE:2684: the device is left out",
                f"{base}/uevent",
            )
            continue
        if kind >> 16 != _DISPLAY_CLASS and kind >> 8 != _ACCELERATOR_CLASS:
            continue
        if identifier[:4] not in VENDORS:
            continue
        driver = record.get("DRIVER")
        if driver is None:
            link = tree.path(f"{base}/driver")
            driver = link.resolve().name if link.is_symlink() else None
        minors = tree.names(f"{base}/drm")
        devices.append(
            _Device(
                address=pci_address(name) or name,
                pci_id=identifier,
                base=base,
                driver=driver,
                revision=_hexadecimal(tree.text(f"{base}/revision")),
                cards=[minor for minor in minors if re.fullmatch(r"card[0-9]+", minor)],
                renders=[minor for minor in minors if re.fullmatch(r"renderD[0-9]+", minor)],
            )
        )
    return devices


def _database_name(tree: Tree, device: _Device) -> str | None:
    """Look a GPU's name up in the machine's own lists: libdrm's amdgpu.ids, then the PCI ids."""
    vendor, product = device.pci_id.split(":")
    if device.vendor == "amd" and device.revision is not None:
        for line in (tree.text("/usr/share/libdrm/amdgpu.ids") or "").splitlines():
            parts = [part.strip() for part in line.split(",", 2)]
            if len(parts) == 3 and parts[0].lower() == product and _hexadecimal(parts[1]) == device.revision:
                return parts[2]
    for path in ("/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids"):
        inside = False
        for line in (tree.text(path) or "").splitlines():
            if not line.startswith(("\t", "#")) and line:
                inside = line.startswith(vendor)
            elif inside and line.startswith(f"\t{product} "):
                return line.split(None, 1)[1]
    return None


def _proc_nvidia(tree: Tree, address: str) -> dict[str, str]:
    """Return the lines of /proc/driver/nvidia/gpus/ADDRESS/information, by their names."""
    path = f"/proc/driver/nvidia/gpus/{address}/information"
    text = tree.text(path, required=True)
    if text is None:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    record = {key.strip(): value.strip() for key, mark, value in pairs if mark}
    if not record.get("Model"):
        tree.problem("malformed", f"{path} has no line 'Model: ...', so the name is taken from elsewhere", path)
    return record


def _nvidia_driver(tree: Tree) -> str | None:
    path = "/proc/driver/nvidia/version"
    text = tree.text(path, required=True)
    if text is None:
        return tree.text("/sys/module/nvidia/version")
    match = re.search(r"Kernel Module(?: for \S+)?\s+([0-9]+(?:\.[0-9]+)+)", text)
    if not match:
        tree.problem("malformed", f"{path} names no version: {_shown(text)}", path)
        return tree.text("/sys/module/nvidia/version")
    return match.group(1)


_NOT_REPORTED = {"[N/A]", "N/A", "[Not Supported]"}


def _nvidia_smi(tree: Tree, result: ToolResult) -> dict[str, dict[str, str]]:
    """Return nvidia-smi's rows by PCI address; `memory.free` leaves out what the driver keeps for itself."""
    source = " ".join(TOOL_COMMANDS["nvidia-smi"])
    if result.status == "missing":
        tree.problem(
            "nvidia_smi_missing",
            "nvidia-smi is not installed, and only it tells how much memory an NVIDIA GPU has: install the "
            "package of the "
            "driver's tools (nvidia-driver-cuda, or xorg-x11-drv-nvidia-cuda from RPM Fusion)",
            "nvidia-smi",
        )
        return {}
    if result.status != "ok":
        said = (result.output.strip() or result.detail.strip()).splitlines()
        words = said[0] if said else "no message"
        if "version mismatch" in result.output + result.detail:
            words += " (the library was updated and the module still runs in its old version: reboot)"
        tree.problem("tool_failed" if result.status == "failed" else "tool_timeout", f"nvidia-smi: {words}", source)
        return {}
    rows = {}
    for line in result.output.splitlines():
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",")]
        address = pci_address(cells[0])
        if len(cells) != 5 or address is None:
            tree.problem("malformed", f"nvidia-smi wrote {_shown(line)}, where five values are asked for", source)
            continue
        rows[address] = dict(zip(("name", "total", "free", "compute_cap"), cells[1:]))
    return rows


def _mebibytes(tree: Tree, address: str, name: str, text: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text) * MIB
    tree.problem(
        "malformed",
        f"nvidia-smi gives {_shown(text)} as {name}, where a number of MiB is expected",
        "nvidia-smi",
        gpu=address,
    )
    return None


@dataclass
class _KfdNode:
    number: int
    values: dict[str, int]

    @property
    def address(self) -> str | None:
        location = self.values.get("location_id")
        if location is None:
            return None
        domain = self.values.get("domain", 0)
        return f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


def _kfd_nodes(tree: Tree) -> list[_KfdNode]:
    """Return the nodes of KFD's topology that are GPUs (a CPU's node has no gfx_target_version)."""
    base = "/sys/class/kfd/kfd/topology/nodes"
    nodes = []
    for name in sorted((name for name in tree.names(base) if name.isdigit()), key=int):
        path = f"{base}/{name}/properties"
        text = tree.text(path, required=True)
        if text is None:
            continue
        values = {}
        for line in text.splitlines():
            match = re.fullmatch(r"\s*(\w+)\s+([0-9]{1,20})\s*", line)
            if match:
                values[match.group(1)] = int(match.group(2))
            elif line.strip():
                tree.problem("malformed", f"{path} has the line {_shown(line)}, where a name and a number belong", path)
        if values.get("gfx_target_version", 0) > 0:
            nodes.append(_KfdNode(int(name), values))
        elif values.get("simd_count", 0) > 0 or not values:
            tree.problem("malformed", f"{path} names a GPU without its gfx_target_version", path)
    return nodes


def _node_entry(tree: Tree, path: str, captured: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return a device node with its owner group; group is None where no group has the number."""
    if captured:
        return captured.get(path)
    try:
        status = tree.path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        tree.problem("unreadable", f"{path} cannot be looked at: {exc.strerror or exc}", path)
        return None
    try:
        group: str | None = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = None
    return {"path": path, "mode": f"{stat.S_IMODE(status.st_mode):04o}", "gid": status.st_gid, "group": group}


def _captured_nodes(tree: Tree) -> dict[str, dict[str, Any]]:
    """Read `stat -c '%n %a %g %G'` of a captured machine's device nodes; UNKNOWN is a group without a name."""
    path = f"{CAPTURED}/stat"
    found = {}
    for line in ("" if tree.live else tree.text(path) or "").splitlines():
        match = re.fullmatch(r"(/dev/\S+) ([0-7]{1,4}) ([0-9]+) (\S+)", line.strip())
        if not match:
            tree.problem(
                "malformed", f"{path} has the line {_shown(line)}, which is not of the form '%n %a %g %G'", path
            )
            continue
        name, mode, gid, group = match.groups()
        known = None if group == "UNKNOWN" else group
        found[name] = {"path": name, "mode": f"{int(mode, 8):04o}", "gid": int(gid), "group": known}
    return found


def _vulkan_devices(tree: Tree, result: ToolResult) -> list[dict[str, str]] | None:
    """Return the devices of `vulkaninfo --summary` by pci_id and type, or None where it gave no answer."""
    if result.status == "missing":
        return None
    if result.status != "ok":
        said = (result.detail.strip() or result.output.strip()).splitlines()
        identifier = "tool_failed" if result.status == "failed" else "tool_timeout"
        tree.problem(identifier, f"vulkaninfo: {said[-1] if said else 'no message'}", "vulkaninfo --summary")
        return None
    devices: list[dict[str, str]] = []
    for line in result.output.splitlines():
        if re.match(r"\s*GPU[0-9]+:\s*$", line):
            devices.append({})
        elif devices and "=" in line:
            key, _mark, value = line.partition("=")
            devices[-1][key.strip()] = value.strip()
    found = []
    for device in devices:
        vendor, product = _hexadecimal(device.get("vendorID")), _hexadecimal(device.get("deviceID"))
        kind = device.get("deviceType", "")
        if vendor is None or product is None or not kind:
            tree.problem(
                "malformed",
                "vulkaninfo --summary lists a device without vendorID, deviceID or deviceType",
                "vulkaninfo --summary",
            )
            continue
        found.append({"pci_id": f"{vendor:04x}:{product:04x}", "type": kind})
    return found


_VULKAN_DRIVERS = frozenset({"nvidia", "nouveau", "amdgpu", "i915", "xe"})


def _memory(tree: Tree) -> dict[str, int | None]:
    path = "/proc/meminfo"
    text = tree.text(path, required=True)
    figures: dict[str, int | None] = {"MemTotal": None, "MemAvailable": None}
    if text is not None:
        for name in figures:
            match = re.search(rf"^{name}:\s*([0-9]+) kB$", text, re.MULTILINE)
            if match:
                figures[name] = int(match.group(1)) * 1024
            else:
                tree.problem("malformed", f"{path} has no line '{name}: N kB'", path)
    return {"ram_total_bytes": figures["MemTotal"], "ram_available_bytes": figures["MemAvailable"]}


def _firmware(tree: Tree, result: ToolResult) -> str | None:
    if result.status == "timeout":
        tree.problem("tool_timeout", f"rpm: {result.detail}", " ".join(TOOL_COMMANDS["rpm"]))
    if result.status != "ok":  # rpm says with code 1 that the package is not installed: nothing is wrong with that
        return None
    versions = [line.strip() for line in result.output.splitlines() if re.fullmatch(r"[0-9][\w.~^+]*", line.strip())]
    return versions[-1] if versions else None


def _page_size(tree: Tree) -> int:
    return os.sysconf("SC_PAGE_SIZE") if tree.live else PAGE_BYTES


def _gpu(
    tree: Tree,
    device: _Device,
    *,
    memory: Mapping[str, int | None],
    nvidia_version: str | None,
    rows: Mapping[str, dict[str, str]],
    nodes: Sequence[_KfdNode],
    captured: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    gpu: dict[str, Any] = {
        "name": None,
        "vendor": device.vendor,
        "pci_address": device.address,
        "pci_id": device.pci_id,
        "driver": device.driver,
        "driver_version": None,
        "vram_total_bytes": None,
        "vram_used_bytes": None,
        "gtt_total_bytes": None,
        "gtt_used_bytes": None,
        "integrated": device.vendor == "intel" and device.address == "0000:00:02.0",
        "compute_capability": None,
        "gfx_target": None,
        "cuda_driver_max": None,
        "device_nodes": [],
        "backends": [],
    }
    paths = [f"/dev/dri/{minor}" for minor in (*device.cards, *device.renders)]
    if device.driver == "nvidia":
        paths = _fill_nvidia(tree, gpu, memory=memory, version=nvidia_version, row=rows.get(device.address)) + paths
        gpu["backends"].append("cuda")
    elif device.driver == "amdgpu":
        node = next((node for node in nodes if node.address == device.address), None)
        _fill_amd(tree, gpu, base=device.base, node=node)
        if node is not None:
            paths = ["/dev/kfd", *paths]
            gpu["backends"].append("rocm")
        else:
            tree.problem(
                "kfd_node_missing",
                f"{device.address} has the driver amdgpu and no node in KFD's topology, so ROCm does not see it",
                "/sys/class/kfd/kfd/topology/nodes",
                gpu=device.address,
            )
    if device.driver in _VULKAN_DRIVERS:
        gpu["backends"].append("vulkan")
    elif device.driver is None:
        tree.problem(
            "no_driver",
            f"no kernel driver has taken the GPU {device.address} ({device.pci_id}): nothing can compute on it",
            f"{device.base}/uevent",
            gpu=device.address,
        )
    if device.driver == "nouveau":
        tree.problem(
            "nouveau",
            f"{device.address} is driven by nouveau, which has no CUDA: install NVIDIA's driver for the CUDA backend",
            f"{device.base}/uevent",
            gpu=device.address,
        )
    gpu["name"] = gpu["name"] or _database_name(tree, device) or f"{device.vendor} {device.pci_id}"
    found = (_node_entry(tree, path, captured) for path in paths)
    gpu["device_nodes"] = [node for node in found if node is not None]
    _check_nodes(tree, gpu, paths)
    return gpu


def _fill_nvidia(
    tree: Tree,
    gpu: dict[str, Any],
    *,
    memory: Mapping[str, int | None],
    version: str | None,
    row: dict[str, str] | None,
) -> list[str]:
    """Fill in what NVIDIA's module and tool say, and return the paths of the module's device nodes."""
    address = gpu["pci_address"]
    record = _proc_nvidia(tree, address)
    gpu["name"] = record.get("Model")
    gpu["driver_version"] = version
    gpu["cuda_driver_max"] = cuda_driver_max(version)
    if row is not None:
        gpu["name"] = gpu["name"] or row["name"]
        if re.fullmatch(r"[0-9]+\.[0-9]+", row["compute_cap"]):
            gpu["compute_capability"] = row["compute_cap"]
        else:
            tree.problem(
                "malformed",
                f"nvidia-smi gives {_shown(row['compute_cap'])} as compute_cap, where a form such as 8.9 is expected",
                "nvidia-smi",
                gpu=address,
            )
        unified = gpu["pci_id"] in _UNIFIED_NVIDIA_IDS or (gpu["name"] or "").startswith(_UNIFIED_NVIDIA_NAMES)
        if unified and row["total"] in _NOT_REPORTED:
            total, available = memory["ram_total_bytes"], memory["ram_available_bytes"]
            gpu["integrated"] = True
            gpu["vram_total_bytes"] = total
            gpu["vram_used_bytes"] = None if total is None or available is None else total - available
        else:
            total = _mebibytes(tree, address, "memory.total", row["total"])
            free = _mebibytes(tree, address, "memory.free", row["free"])
            gpu["vram_total_bytes"] = total
            gpu["vram_used_bytes"] = None if total is None or free is None else total - free
    minor = record.get("Device Minor", "")
    paths = ["/dev/nvidiactl", "/dev/nvidia-uvm"]
    if minor.isdigit():
        paths.insert(0, f"/dev/nvidia{minor}")
    return paths


def _fill_amd(tree: Tree, gpu: dict[str, Any], *, base: str, node: _KfdNode | None) -> None:
    gpu["name"] = tree.text(f"{base}/product_name") or None
    # The driver of the kernel's own tree has no version apart from the kernel's; only AMD's packages write this file.
    gpu["driver_version"] = tree.text("/sys/module/amdgpu/version")
    for name in ("vram_total", "vram_used", "gtt_total", "gtt_used"):
        gpu[f"{name}_bytes"] = tree.integer(f"{base}/mem_info_{name}", required=True)
    if node is not None:
        gpu["gfx_target"] = gfx_name(node.values["gfx_target_version"])
        gpu["integrated"] = gpu["gfx_target"] in APU_TARGETS


def _check_nodes(tree: Tree, gpu: dict[str, Any], wanted: Sequence[str]) -> None:
    address = gpu["pci_address"]
    present = {node["path"] for node in gpu["device_nodes"]}
    for path in wanted:
        if path not in present and path == "/dev/nvidia-uvm":
            tree.problem(
                "nvidia_uvm_missing",
                "/dev/nvidia-uvm is missing, and CUDA cannot start without it: the module nvidia-uvm is loaded "
                "lazily by a "
                "setuid helper that a hardened service may not run (the role gpu_access loads it at boot)",
                path,
                gpu=address,
            )
        elif path not in present:
            tree.problem("device_node_missing", f"{path} of the GPU {address} is missing", path, gpu=address)
    for node in gpu["device_nodes"]:
        mode = int(node["mode"], 8)
        if mode & 0o006 == 0o006:
            continue
        if node["group"] is None or node["gid"] == 0 or mode & 0o060 != 0o060:
            group = node["group"] or f"number {node['gid']} without a name"
            tree.problem(
                "node_without_group",
                f"{node['path']} has mode {node['mode']} and the group {group}, so no membership gives a user "
                "access to it",
                node["path"],
                gpu=address,
            )


def _check_apu(
    tree: Tree, gpu: dict[str, Any], memory: dict[str, int | None], kernel: dict[str, Any], firmware: str | None
) -> None:
    address = gpu["pci_address"]
    if gpu["gfx_target"] == STRIX_HALO:
        release = parse_version(kernel["release"])
        if release and release < KERNEL_FLOOR_STRIX_HALO:
            tree.problem(
                "kernel_too_old",
                f"the kernel {kernel['release']} is older than 6.18.4, from which on gfx1151 has the right number "
                "of vector "
                "registers and queue sizes: ROCm can hang or compute wrongly",
                _AMD_APU_DOC,
                gpu=address,
            )
        if firmware == BAD_FIRMWARE:
            tree.problem(
                "firmware_known_bad",
                f"linux-firmware {firmware} breaks ROCm on gfx1151: take 20251111, or 20260110 or newer, then run "
                "dracut -f",
                _TOOLBOX_DOC,
                gpu=address,
            )
    if gpu["integrated"] and (gpu["vram_total_bytes"] or 0) > CARVEOUT_LIMIT:
        tree.problem(
            "carveout_large",
            f"the firmware keeps {gpu['vram_total_bytes'] / GIB:.1f} GiB of RAM for the GPU alone: the system has "
            f"{(memory['ram_total_bytes'] or 0) / GIB:.1f} GiB left. Set the firmware's UMA frame buffer to 512 "
            "MiB and raise "
            "the GTT limit instead (the role gtt_memory)",
            _AMD_APU_DOC,
            gpu=address,
        )


def _check_gtt(tree: Tree, memory: dict[str, int | None], cmdline: str) -> None:
    pages = memory["ttm_pages_limit"]
    gttsize = tree.integer("/sys/module/amdgpu/parameters/gttsize")
    if pages is not None and gttsize is not None and gttsize != -1 and gttsize * MIB != pages * _page_size(tree):
        tree.problem(
            "gtt_limits_disagree",
            f"amdgpu.gttsize is {gttsize} MiB and ttm.pages_limit is {pages} pages, which is "
            f"{pages * _page_size(tree) // MIB} MiB: the driver promises the first figure and gives the smaller one",
            _TTM_DOC,
        )
    for argument in cmdline.split():
        if argument.startswith("amdgpu.gtt_size=") or (
            argument.startswith("amdttm.") and not tree.exists("/sys/module/amdttm")
        ):
            tree.problem(
                "kernel_argument_ignored",
                f"the kernel ignores the argument {argument}: no module of this kernel has it (ttm.pages_limit is "
                "meant)",
                "/proc/cmdline",
            )


def _check_cuda(tree: Tree, gpu: dict[str, Any], cuda_version: str) -> None:
    too_old = driver_too_old(cuda_version, gpu["driver_version"] or "")
    if too_old:
        tree.problem("driver_below_cuda_floor", too_old, _CUDA_DOC, severity="error", gpu=gpu["pci_address"])
    capability = gpu["compute_capability"]
    if capability is None:
        return
    known = GPUS.get(capability)
    cuda = parse_version(cuda_version)
    if known is None or not cuda:
        return
    first, last = known.first_cuda, known.last_cuda
    if cuda < first:
        wrong = f"which CUDA {first[0]}.{first[1]} and newer compile for"
    elif last is not None and cuda[:2] > last:
        wrong = f"which CUDA {last[0]}.{last[1]} was the last to compile for"
    else:
        return
    tree.problem(
        "cuda_not_for_gpu",
        f"{gpu['name']} has compute capability {capability}, {wrong}, and CUDA {cuda_version} is chosen",
        "NVIDIA's release notes of the CUDA toolkits",
        severity="error",
        gpu=gpu["pci_address"],
    )


def _check_vulkan(tree: Tree, gpus: Sequence[dict[str, Any]], devices: list[dict[str, str]] | None) -> None:
    """Take the Vulkan backend from GPUs that the Vulkan loader does not offer."""
    if devices is None:
        return
    real = {device["pci_id"] for device in devices if not device["type"].endswith("_CPU")}
    for gpu in gpus:
        if "vulkan" in gpu["backends"] and gpu["pci_id"] not in real:
            gpu["backends"].remove("vulkan")
            only = " and offers a CPU rasteriser (llvmpipe) in its place" if devices and not real else ""
            tree.problem(
                "vulkan_device_missing",
                f"vulkaninfo does not list {gpu['name']}{only}: install the Vulkan driver (mesa-vulkan-drivers "
                "for AMD and "
                "Intel), or give the calling user access to the render node",
                "vulkaninfo --summary",
                gpu=gpu["pci_address"],
            )


def read_hardware(
    root: str = "/",
    *,
    timeout: float = 1.5,
    cuda_version: str | None = None,
    tools: Mapping[str, ToolResult] | None = None,
) -> dict[str, Any]:
    """Return a machine's GPUs, memory, kernel, firmware and known problems.

    With another ``root`` than / the files of a captured machine are read and no program is run: the answers of programs
    are the files below ``/.captured``.
    """
    tree = Tree(root)
    devices = _devices(tree)
    drivers = {device.driver for device in devices}
    if tools is None:
        if tree.live:
            wanted = {"rpm"} | ({"nvidia-smi"} if "nvidia" in drivers else set())
            if drivers & _VULKAN_DRIVERS:
                wanted.add("vulkaninfo")
            tools = run_tools({name: TOOL_COMMANDS[name] for name in sorted(wanted)}, timeout)
        else:
            tools = captured_tools(tree)
    absent = ToolResult("missing")

    memory = _memory(tree)
    kernel = {
        # The same words as /proc/sys/kernel/osrelease, which a container may not show.
        "release": os.uname().release if tree.live else tree.text("/proc/sys/kernel/osrelease", required=True),
        "cmdline": tree.text("/proc/cmdline", required=True),
    }
    firmware = _firmware(tree, tools.get("rpm", absent))
    captured = _captured_nodes(tree)
    nvidia = "nvidia" in drivers
    nvidia_version = _nvidia_driver(tree) if nvidia else None
    rows = _nvidia_smi(tree, tools.get("nvidia-smi", absent)) if nvidia else {}
    nodes = _kfd_nodes(tree)
    gpus = [
        _gpu(
            tree,
            device,
            memory=memory,
            nvidia_version=nvidia_version,
            rows=rows,
            nodes=nodes,
            captured=captured,
        )
        for device in devices
    ]
    if nvidia and tools.get("nvidia-smi", absent).status == "ok":
        for gpu in gpus:
            if gpu["driver"] == "nvidia" and gpu["pci_address"] not in rows:
                tree.problem(
                    "nvidia_smi_lacks_gpu",
                    f"nvidia-smi does not list the GPU {gpu['pci_address']}: its memory is not known",
                    "nvidia-smi",
                    gpu=gpu["pci_address"],
                )

    memory["ttm_pages_limit"] = tree.integer("/sys/module/ttm/parameters/pages_limit")
    memory["gtt_limit_bytes"] = _gtt_limit(tree, gpus, memory["ttm_pages_limit"])
    _check_vulkan(tree, gpus, _vulkan_devices(tree, tools.get("vulkaninfo", absent)) if gpus else None)
    for gpu in gpus:
        if gpu["vendor"] == "amd":
            _check_apu(tree, gpu, memory, kernel, firmware)
        if gpu["driver"] == "nvidia" and cuda_version:
            _check_cuda(tree, gpu, cuda_version)
    if "amdgpu" in drivers:
        _check_gtt(tree, memory, kernel["cmdline"] or "")
    return {"gpus": gpus, "memory": memory, "kernel": kernel, "firmware": firmware, "problems": tree.problems}


def _gtt_limit(tree: Tree, gpus: Sequence[dict[str, Any]], pages: int | None) -> int | None:
    """Return what the GPU may map of the RAM: the driver's own figure, an APU's before a card's, else TTM's limit."""
    totals = [(gpu["integrated"], gpu["gtt_total_bytes"]) for gpu in gpus if gpu["gtt_total_bytes"] is not None]
    if totals:
        return int(max(totals)[1])
    return None if pages is None else pages * _page_size(tree)


# The names that ggml gives devices, in the order in which its backends register: a GPU that two backends offer is used
# through the first of them (llama.cpp compares the PCI addresses).
BACKEND_DEVICE_NAMES = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}


def planning_devices(
    info: Mapping[str, Any], backends: Sequence[str] | None = None, reserve_bytes: int | None = None
) -> list[dict[str, Any]]:
    """Return the devices that llama-server would place a model on, with the memory it would see on each.

    ``backends`` are those of the build; None takes for each GPU the first of its own. Raises ValueError where a backend
    is asked for that no GPU has, or where a GPU's memory is not known.
    """
    gpus = info.get("gpus") if isinstance(info, Mapping) else None
    memory = info.get("memory") if isinstance(info, Mapping) else None
    if not isinstance(gpus, Sequence) or isinstance(gpus, (str, bytes)) or not isinstance(memory, Mapping):
        raise ValueError("a result of the module gpu_info is needed, with its gpus (a list) and memory (a dictionary)")
    known = ("cpu", *BACKEND_DEVICE_NAMES)
    for backend in backends or ():
        if backend not in known:
            raise ValueError(f"{backend!r} is not a backend: it must be one of {', '.join(known)}")
        if backend != "cpu" and not any(backend in gpu["backends"] for gpu in gpus):
            there = ", ".join(f"{gpu['name']} ({', '.join(gpu['backends']) or 'no backend'})" for gpu in gpus) or "none"
            raise ValueError(f"no GPU of the host can be used by the backend {backend}; GPUs there are: {there}")

    if backends is None:
        active = [name for name in BACKEND_DEVICE_NAMES if any(gpu["backends"][:1] == [name] for gpu in gpus)]
    else:
        active = [name for name in BACKEND_DEVICE_NAMES if name in backends]

    chosen: list[tuple[bool, dict[str, Any]]] = []
    taken: set[str] = set()
    for backend in active:
        offered = [gpu for gpu in gpus if backend in gpu["backends"]]
        if backend == "vulkan":
            # The Vulkan loader lists discrete GPUs first; CUDA and ROCm count in the order of the PCI bus.
            offered.sort(key=lambda gpu: (gpu["integrated"], gpu["pci_address"]))
        else:
            offered.sort(key=lambda gpu: gpu["pci_address"])
        for index, gpu in enumerate(offered):
            if gpu["pci_address"] in taken:
                continue
            taken.add(gpu["pci_address"])
            total, free = _device_memory(gpu, memory, backend, reserve_bytes)
            device = {
                "name": f"{BACKEND_DEVICE_NAMES[backend]}{index}",
                "backend": backend,
                "total_bytes": total,
                "free_bytes": free,
            }
            # Only Vulkan tells llama.cpp that a GPU is integrated; CUDA and ROCm call all of theirs GPUs.
            chosen.append((backend == "vulkan" and gpu["integrated"], device))
    first = [device for integrated, device in chosen if not integrated]
    return first or [device for _integrated, device in chosen]


def _device_memory(
    gpu: Mapping[str, Any], memory: Mapping[str, Any], backend: str, reserve_bytes: int | None
) -> tuple[int, int]:
    """Return the memory that a backend sees on a GPU, and how much of it a model may take now."""

    def figure(holder: Mapping[str, Any], name: str) -> int:
        value = holder.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} of {gpu['name']} is not known, so nothing can be planned on it: see problems")
        return value

    vram = figure(gpu, "vram_total_bytes")
    vram_free = vram - figure(gpu, "vram_used_bytes")
    if not gpu["integrated"]:
        return vram, vram_free

    # What is mapped from RAM is pinned, and no process is charged for it: the system keeps its reserve in any case.
    ram = figure(memory, "ram_total_bytes")
    reserve = default_reserve(ram) if reserve_bytes is None else reserve_bytes
    if not 0 <= reserve < ram:
        raise ValueError(f"the reserve of {reserve} bytes must be at least 0 and less than the host's RAM, {ram} bytes")
    spare = max(0, min(figure(memory, "ram_available_bytes"), ram - reserve))
    if gpu["vendor"] != "amd":
        return ram, spare
    gtt = figure(gpu, "gtt_total_bytes")
    # TTM refuses to fill past its own limit, whatever amdgpu.gttsize promises.
    pages = memory.get("ttm_pages_limit")
    usable = gtt if pages is None else min(gtt, pages * PAGE_BYTES)
    gtt_free = usable - figure(gpu, "gtt_used_bytes")
    if backend == "vulkan":
        # RADV gives an APU's carve-out and GTT as heaps, and ggml-vulkan adds up all heaps of an integrated GPU.
        return vram + gtt, vram_free + min(gtt_free, spare)
    # From kernel 6.10 on KFD takes memory from GTT where the GTT is larger than the carve-out, else from the carve-out.
    if gtt > vram:
        return gtt, min(gtt_free, spare)
    return vram, vram_free
