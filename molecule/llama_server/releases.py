# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make releases on the host under test: a real llama-server, and doubles that fail in one way each.

The server is one that the collection built before, an artifact of bin/demo.
"""

import os
import tarfile
from pathlib import Path

RELEASES = Path("/opt/llamafleet/releases")
GOOD = RELEASES / "good/bin"

# Says of itself what the real one says, so that its command line is rendered; then fails.
ASKED = f"""#!/bin/sh
case "$*" in *--help*) exec {GOOD}/llama-server --help;; esac
"""
EXITS = ASKED + 'echo "error: cannot find my libraries" >&2; exit 1\n'
HANGS = ASKED + 'echo "loading, and never done"; exec sleep 10000\n'
# Stopped most of the time, as if it computed on the wrong device.
SLOW = (
    ASKED
    + f"""(while kill -STOP $$; do sleep 0.25; kill -CONT $$; sleep 0.05; done) 2>/dev/null &
exec {GOOD}/llama-server "$@"
"""
)
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
    with tarfile.open("/opt/server.tar.gz") as built:
        built.extractall(GOOD.parent, filter="data")
    for kind, text in (("exits", EXITS), ("hangs", HANGS), ("slow", SLOW), ("mute", MUTE)):
        folder = RELEASES / kind / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "llama-server").write_text(text)
        (folder / "llama-server").chmod(0o755)
    os.sync()


if __name__ == "__main__":
    main()
