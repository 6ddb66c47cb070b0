# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README of each role and the table of roles, from the argument specs: `python3 -m support.role_docs [--check]`.

What stands above the marker line in a role's README is by hand and stays; all below it is generated. In the project's
own README the lines between the two markers are generated.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TABLE_BEGIN = "<!-- roles: made from their argument specs -->"
TABLE_END = "<!-- end of roles -->"
MARKER = "<!-- Below: made from meta/argument_specs.yml; change it there. -->"


def _paragraphs(text: str | list[str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


def _markdown(text: str) -> str:
    """Turn Ansible's own markup, such as C(code) and V(value), into Markdown, on one line."""
    return re.sub(r"\b[BCEIMOPRV]\(([^()]*)\)", r"`\1`", " ".join(text.split()))


def _one_line(text: str | list[str]) -> str:
    return _markdown(" ".join(_paragraphs(text))).replace("|", "\\|")


def _default(option: dict[str, Any]) -> str:
    if option.get("required"):
        return "*required*"
    if "default" not in option:
        return ""
    value = option["default"]
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value or '""'
    return f"`{text}`".replace("|", "\\|")


def _rows(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, option in options.items():
        kind = option.get("type", "str")
        if option.get("elements"):
            kind = f"{kind} of {option['elements']}"
        choices = option.get("choices")
        text = _one_line(option["description"])
        if choices:
            text += " One of " + ", ".join(f"`{json.dumps(choice).strip(chr(34))}`" for choice in choices) + "."
        yield f"| `{prefix}{name}` | {kind} | {_default(option)} | {text} |"
        if option.get("options"):
            yield from _rows(option["options"], f"{prefix}{name}{'[]' if option.get('elements') else ''}.")


def generated(role: Path) -> str:
    """Return the generated part of a role's README."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    lines = [MARKER, ""]
    for entry, spec in specs.items():
        lines += [f"## Entry point `{entry}`", ""]
        lines += [f"{_markdown(paragraph)}\n" for paragraph in _paragraphs(spec["description"])]
        if spec.get("options"):
            lines += ["| variable | type | default | meaning |", "|---|---|---|---|", *_rows(spec["options"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def readme(role: Path) -> str:
    path = role / "README.md"
    if path.exists():
        by_hand = path.read_text(encoding="utf-8").partition(MARKER)[0].rstrip()
    else:
        specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
        by_hand = f"# Role llamafleet.turboquant.{role.name}\n\n{specs['main']['short_description'].rstrip('.')}."
    return f"{by_hand}\n\n{generated(role)}"


def overview(root: Path) -> str:
    """Return the project's README with its table of roles as the roles are."""
    rows = ["", "| role | what it does |", "|---|---|"]
    for spec in sorted(root.glob("roles/*/meta/argument_specs.yml")):
        main_entry = yaml.safe_load(spec.read_text(encoding="utf-8"))["argument_specs"]["main"]
        name = spec.parents[1].name
        rows.append(f"| [{name}](roles/{name}/README.md) | {_one_line(main_entry['short_description'])} |")
    text = (root / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(TABLE_BEGIN)
    _table, end, after = rest.partition(TABLE_END)
    if not begin or not end:
        raise SystemExit(f"README.md lacks the lines {TABLE_BEGIN} and {TABLE_END}")
    return "\n".join([before + begin, *rows, "", end + after])


def main() -> int:
    root = Path(__file__).resolve().parents[2]
    stale = []
    pages = {
        spec.parents[1] / "README.md": readme(spec.parents[1]) for spec in root.glob("roles/*/meta/argument_specs.yml")
    }
    pages[root / "README.md"] = overview(root)
    for path, wanted in sorted(pages.items()):
        if not path.exists() or path.read_text(encoding="utf-8") != wanted:
            stale.append(str(path.relative_to(root)))
            if "--check" not in sys.argv:
                path.write_text(wanted, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"not what their argument specs say (run python3 -m support.role_docs in bin/): {', '.join(stale)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
