# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the unit of an instance for each backend as JSON, for hosts under test without a GPU. Run on the controller."""

import json

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


def main() -> None:
    """Everybody may send packets: the worst case."""
    units = {backend: unit(backend) for backend in ("cpu", "cuda", "rocm", "vulkan")}
    print(json.dumps({**units, "vulkan-jit": unit("vulkan", jit=True)}))


if __name__ == "__main__":
    main()
