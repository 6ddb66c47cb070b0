#!/usr/bin/python
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: what a GGUF model is, read from its header."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_info
short_description: Read what a GGUF model is from its header
version_added: 1.0.0
author:
  - llamafleet contributors (@llamafleet)
description:
  - Reads the header of a GGUF file and returns architecture, metadata and the tensors with their bytes, in the shape
    that R(memory_budget, ansible_collections.llamafleet.turboquant.memory_budget_filter) and its relatives take.
  - The file may lie on the target or on a server. Of a remote file only the header is transferred, by ranges. A model
    of 17 GB whose header has 16 MB costs 16 MB and about seven requests, and is planned for before it is downloaded.
  - Names what a person must know before serving the file, in RV(checks).
  - Needs the standard library of Python only. The header of Gemma 4, with 262,144 tokens and 514,906 merges, is read
    in about a tenth of a second.
extends_documentation_fragment:
  - llamafleet.turboquant._attributes
attributes:
  check_mode:
    support: full
    details:
      - The module changes nothing.
  diff_mode:
    support: none
    details:
      - The module changes nothing.
  idempotent:
    support: full
options:
  path:
    description:
      - A GGUF file on the target.
      - Of a model split into files named V(NAME-00001-of-000NN.gguf), any part; all of them are read as one model.
    type: path
  url:
    description:
      - An C(http) or C(https) address of a GGUF file, for example a C(resolve) address of Hugging Face.
      - Or V(hf:OWNER/REPO/FILE), V(hf:OWNER/REPO/FILE@REVISION) with a branch, tag or commit, by default V(main).
        A revision that is not a commit can name another file tomorrow.
      - Split models as in O(path).
      - A server that ignores C(Range) is read from the file's beginning to the header's end, then the connection is
        closed.
    type: str
  token:
    description:
      - A token for O(url), sent as C(Authorization) header with the scheme C(Bearer).
      - Only goes to the server that O(url) names, never to one that it redirects to, and over plain C(http) to
        loopback addresses only.
    type: str
  build:
    description:
      - The build of llama.cpp that is to load the file. Decides which architectures and tensor types are known, and
        what the type numbers 42 to 44 mean, which builds use differently.
    type: str
    choices:
      - turboquant-69d8e4be
      - upstream-b11434
    default: turboquant-69d8e4be
  hf_endpoint:
    description:
      - The server that O(url) means when it begins with V(hf:); a mirror of Hugging Face, for example.
    type: str
    default: https://huggingface.co
  timeout:
    description:
      - Seconds after which a connection that sends nothing is given up.
    type: int
    default: 30
  validate_certs:
    description:
      - Whether the certificate of an C(https) server is checked.
    type: bool
    default: true
  ca_path:
    description:
      - A file with the certificates of the authorities to trust, in PEM form.
    type: path
  use_proxy:
    description:
      - Whether the proxies that the environment names are used.
    type: bool
    default: true
seealso:
  - plugin: llamafleet.turboquant.memory_budget
    plugin_type: filter
  - plugin: llamafleet.turboquant.fit_context
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Read the header of a model that is not downloaded yet
  llamafleet.turboquant.gguf_info:
    url: hf:unsloth/gemma-4-26B-A4B-it-GGUF/gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf@c099eb48e663
  register: gemma
  delegate_to: localhost
  run_once: true

- name: Refuse a file that the program would not load
  ansible.builtin.assert:
    that: gemma.checks | selectattr('level', 'eq', 'error') | length == 0
    fail_msg: "{{ gemma.checks | map(attribute='message') | join('; ') }}"

- name: Show what a context of 262144 takes on a card of 24 GiB
  ansible.builtin.debug:
    msg: >-
      {{ gemma.model | llamafleet.turboquant.memory_budget(
           devices=[{'name': 'CUDA0', 'backend': 'cuda', 'total_bytes': 24 * 1024 ** 3, 'free_bytes': 23 * 1024 ** 3}],
           options={'ctx_size': 262144, 'parallel': 1, 'cache_type_k': 'q8_0', 'cache_type_v': 'turbo4'}) }}

- name: Check that a downloaded model is whole
  llamafleet.turboquant.gguf_info:
    path: /var/lib/llamafleet/models/gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf
  register: local
  failed_when: local is failed or local.checks | selectattr('code', 'eq', 'truncated') | length > 0
"""

RETURN = r"""
model:
  description: The model as the planning filters take it.
  returned: success
  type: dict
  contains:
    architecture:
      description: The value of C(general.architecture).
      type: str
      sample: gemma4
    metadata:
      description:
        - All metadata by their keys. Arrays of more than 1024 items, such as the vocabulary, are reported as
          C({type, length}), strings of more than 65536 bytes as C({type, bytes}).
      type: dict
      sample:
        gemma4.block_count: 30
        tokenizer.ggml.tokens: {type: string, length: 262144}
    tensors:
      description: For each tensor its name, dimensions, type and bytes.
      type: list
      elements: list
      sample: [[token_embd.weight, [2816, 262144], Q6_K, 605552640]]
    file_bytes:
      description: The size of the file, or of all parts together; null when a server does not say it.
      type: int
      sample: 17010980576
    header_bytes:
      description: Where the tensors' data begin, over all parts together.
      type: int
      sample: 15835488
checks:
  description:
    - What a person must know. C(level) is V(error) for what the program does not load or cannot serve, V(warning) for
      what goes wrong later, V(info) otherwise.
    - >-
      Values of C(code) are V(not_a_model), V(unknown_architecture), V(unknown_tensor_type), V(tensor_row),
      V(tensor_offset), V(truncated), V(trailing_bytes), V(size_unknown), V(split_tensors), V(no_tensors),
      V(vocabulary_missing), V(eog_missing), V(eog_turn_missing), V(eog_expected), V(eog_out_of_range),
      V(eog_typed_normal) and V(chat_template_missing).
  returned: success
  type: list
  elements: dict
  sample:
    - level: error
      code: truncated
      message: "m.gguf has 9000000 bytes, but its header promises 17010980576: 17001980576 are missing"
end_of_generation:
  description: The tokens at which the server ends an answer, found as llama.cpp finds them.
  returned: success
  type: list
  elements: dict
  sample: [{id: 106, text: <turn|>, type: control}]
parts:
  description: The files that the model consists of.
  returned: success
  type: list
  elements: dict
  sample: [{name: m.gguf, file_bytes: 17010980576, header_bytes: 15835488, tensors: 658, version: 3,
            byte_order: little, alignment: 32}]
source:
  description:
    - Where the header came from and what that cost. C(etag) is what the server calls the file's content (its sha256
      on Hugging Face), C(revision) the commit that Hugging Face names.
  returned: success
  type: dict
  sample: {url: https://huggingface.co/o/r/resolve/main/m.gguf, requests: 7, transferred_bytes: 16355187,
           etag: 878be93f9c238ea853b3fd1eb602637ce3cf1cddea56dc345d9a7bf2d6093e29, revision: c099eb48e663}
"""

from typing import TYPE_CHECKING
from urllib.error import HTTPError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import ConnectionError as UrlsConnectionError
from ansible.module_utils.urls import open_url
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gguf import GgufError
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gguf_source import (
    HUGGING_FACE,
    Opener,
    Response,
    SourceError,
    read_model,
)
from ansible_collections.llamafleet.turboquant.plugins.module_utils._gguf_types import BUILDS, DEFAULT_BUILD

if TYPE_CHECKING:
    from typing import Any


def make_opener(params: dict[str, Any]) -> Opener:
    """Ansible's own client, which knows proxies and certificates, with its redirects and .netrc left out."""

    def opener(url: str, headers: dict[str, str]) -> Response:
        try:
            response: Response = open_url(
                url,
                headers=headers,
                method="GET",
                follow_redirects="none",
                decompress=False,
                use_netrc=False,
                timeout=params["timeout"],
                validate_certs=params["validate_certs"],
                ca_path=params["ca_path"],
                use_proxy=params["use_proxy"],
                http_agent="llamafleet.turboquant",
            )
        except HTTPError as error:
            response = error
        except (UrlsConnectionError, ValueError) as error:
            # Certificates that do not fit, a url that the client does not take: its text names the host only.
            raise SourceError(str(error)) from None
        return response

    return opener


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "url": {"type": "str"},
            "token": {"type": "str", "no_log": True},
            "build": {"type": "str", "choices": sorted(BUILDS), "default": DEFAULT_BUILD},
            "hf_endpoint": {"type": "str", "default": HUGGING_FACE},
            "timeout": {"type": "int", "default": 30},
            "validate_certs": {"type": "bool", "default": True},
            "ca_path": {"type": "path"},
            "use_proxy": {"type": "bool", "default": True},
        },
        mutually_exclusive=[("path", "url")],
        required_one_of=[("path", "url")],
        required_by={"token": ["url"]},
        supports_check_mode=True,
    )
    params = module.params
    try:
        result = read_model(
            path=params["path"],
            url=params["url"],
            token=params["token"] or None,
            opener=make_opener(params),
            endpoint=params["hf_endpoint"],
            build=params["build"],
        )
    except GgufError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
