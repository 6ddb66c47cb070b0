# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print units for the hosts under test. Run on the controller.

units.py: of an instance for each backend, as JSON, for hosts without a GPU. units.py loop: of one that hangs on load.
"""

import json
import sys

from ansible_collections.llamafleet.turboquant.plugins.module_utils import _server_instance, _unit
from ansible_collections.llamafleet.turboquant.plugins.modules import llama_instances

KEYS = ["a-key-of-the-test-0123456789"]


def unit(backend: str, **more: object) -> str:
    """The text of llama-server@BACKEND.service, listening on the network with a key."""
    raw = {"name": backend, "model": "m.gguf", "port": 8080, "ctx_size": 4096, "backend": backend, **more}
    item = _server_instance.complete({**raw, "host": "0.0.0.0", "api_keys": KEYS}, llama_instances.DEFAULTS)
    item["loopback"] = _server_instance.loopback(item["host"])
    item["tls_certificate_path"] = item["tls_key_path"] = ""
    groups = [] if backend == "cpu" else ["render", "video"]
    return _unit.render_service(item, "/opt/r", ["--model", "/m.gguf"], "llamafleet", groups)


def loop() -> str:
    """The text of a unit whose program never listens; releases.py makes it."""
    raw = {"name": "loop", "model": "m.gguf", "port": 18209, "ctx_size": 256, "start_timeout": 5, "drain_timeout": 0}
    item = _server_instance.complete(raw, llama_instances.DEFAULTS)
    item["loopback"] = True
    return _unit.render_service(item, "/opt/llamafleet/releases/hangs", ["--port", "18209"], "llamafleet", [])


def main() -> None:
    """Everybody may send packets: the worst case."""
    if sys.argv[1:] == ["loop"]:
        print(loop(), end="")
        return
    units = {backend: unit(backend) for backend in ("cpu", "cuda", "rocm", "vulkan")}
    print(json.dumps({**units, "vulkan-jit": unit("vulkan", jit=True)}))


if __name__ == "__main__":
    main()
