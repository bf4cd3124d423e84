# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/reference/ from what the code says of itself: argument_specs, defaults, modules and filters.

python scripts/docs.py [--check]      --check writes nothing and fails if a page is out of date
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the sources; do not edit. -->\n"
INLINE_DEFAULT = 100
MARKUP = re.compile(r"\b[BCIMOPV]\(((?:[^()]|\([^()]*\))*)\)")


def prose(description: str | list[str] | None) -> str:
    """Return a description as one Markdown paragraph, Ansible's markup replaced."""
    text = " ".join(description) if isinstance(description, list) else description or ""
    return MARKUP.sub(r"`\1`", " ".join(text.split()))


def defaults_by_section(path: Path) -> dict[str, dict[str, str]]:
    """Return the defaults as written, {section: {variable: YAML text}}; a section is a comment `# --- its name ---`."""
    sections: dict[str, dict[str, str]] = {}
    section, name = "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"# -{2,} (.+?) -{2,}$", line):
            section, name = heading[1], ""
        elif key := re.match(r"([A-Za-z_]\w*):\s*(.*)$", line):
            name = key[1]
            sections.setdefault(section, {})[name] = key[2]
        elif name and line.startswith(" "):
            sections[section][name] += f"\n{line}"
        else:
            name = ""
    return sections


def kind(option: dict[str, Any]) -> str:
    """Return the type of an option in words, with its choices."""
    words = str(option.get("type", "str"))
    if option.get("elements"):
        words += f" of {option['elements']}"
    if option.get("choices"):
        words += ": " + ", ".join(f"`{choice}`" for choice in option["choices"])
    return words


def inner_options(options: dict[str, Any] | None, indent: int = 2) -> list[str]:
    """Return the keys of a dictionary option as a nested list."""
    lines = []
    for name, option in (options or {}).items():
        facts = [kind(option)]
        if option.get("required"):
            facts.append("required")
        elif "default" in option:
            facts.append(f"default `{yaml.safe_dump(option['default'], default_flow_style=True).split(chr(10))[0]}`")
        lines.append(f"{' ' * indent}- `{name}` ({', '.join(facts)}): {prose(option.get('description'))}")
        lines += inner_options(option.get("options"), indent + 2)
    return lines


def variable(name: str, option: dict[str, Any], default: str) -> list[str]:
    """Return the lines about one variable of a role."""
    value = default.strip()
    short = "\n" not in value and len(value) <= INLINE_DEFAULT
    unquoted = value.strip('"')
    shown = f"`{unquoted}`" if short and value else "below" if value else "none"
    facts = "required" if option.get("required") else f"default {shown}"
    lines = [f"- **`{name}`** ({kind(option)}; {facts}): {prose(option.get('description'))}"]
    lines += inner_options(option.get("options"))
    if not short and value:
        body = default.rstrip().splitlines()
        lines += [
            "",
            "  ```yaml",
            f"  {name}: {body[0]}".rstrip(),
            *(f"  {line}".rstrip() for line in body[1:]),
            "  ```",
            "",
        ]
    return lines


def role_page(role: str) -> str:
    """Return the page of a role."""
    folder = ROOT / "roles" / role
    spec = yaml.safe_load((folder / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"][
        "main"
    ]
    options: dict[str, Any] = spec.get("options") or {}
    title = "The contract: `platform_*`" if role == "_platform" else f"Variables of the role `{role}`"
    lines = [f"# {title}", "", NOTE, prose(spec.get("short_description")), "", prose(spec.get("description")), ""]
    if (folder / "README.md").is_file():
        lines += [f"The idea and an example: [README](../../roles/{role}/README.md).", ""]
    sections = defaults_by_section(folder / "defaults" / "main.yml")
    written = {name for section in sections.values() for name in section}
    required = {name: "" for name in options if name not in written}
    for section, names in (({"required": required} if required else {}) | sections).items():
        if section:
            lines += [f"## {section[0].upper()}{section[1:]}", ""]
        for name, default in names.items():
            lines += variable(name, options.get(name, {}), default)
        lines.append("")
    return tidy(lines)


def constants(path: Path) -> dict[str, str]:
    """Return the texts a file assigns to names, in its classes as well."""
    return {
        target.id: str(node.value.value)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def documentation(path: Path) -> dict[str, Any]:
    """Return a file's DOCUMENTATION, with the options of the fragments it extends."""
    about: dict[str, Any] = yaml.safe_load(constants(path).get("DOCUMENTATION", "")) or {}
    for name in about.get("extends_documentation_fragment", []):
        shared = documentation(ROOT / "plugins" / "doc_fragments" / f"{name.rpartition('.')[2]}.py")
        about["options"] = {**about.get("options", {}), **shared.get("options", {})}
    return about


def module_section(path: Path) -> list[str]:
    """Return what a module's DOCUMENTATION says."""
    about = documentation(path)
    lines = [f"### {path.stem}", "", prose(about.get("description") or about.get("short_description")), ""]
    lines += inner_options(about.get("options"), 0)
    if examples := constants(path).get("EXAMPLES"):
        lines += ["", "```yaml", examples.strip(), "```"]
    return [*lines, ""]


def filter_sections(path: Path) -> list[str]:
    """Return what the functions behind a file's filters say of themselves."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "filters":
            for table in (item for item in ast.walk(node) if isinstance(item, ast.Dict)):
                for key, value in zip(table.keys, table.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Name) and value.id in functions:
                        text = re.sub(r"``([^`]+)``", r"`\1`", ast.get_docstring(functions[value.id]) or "")
                        lines += ["### " + str(key.value), "", text.strip(), ""]
    return lines


def plugins_page() -> str:
    """Return the page of modules and filters."""
    lines = ["# Modules and filters", "", NOTE, "All names begin with `dealscale.n8n_platform.`", "", "## Modules", ""]
    for path in sorted((ROOT / "plugins" / "modules").glob("*.py")):
        lines += module_section(path)
    lines += ["## Filters", ""]
    for path in sorted((ROOT / "plugins" / "filter").glob("*.py")):
        lines += filter_sections(path)
    return tidy(lines)


def tidy(lines: list[str]) -> str:
    """Return lines as a file: no double blank lines, one newline at the end."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def pages() -> dict[str, str]:
    """Return all pages by file name."""
    roles = sorted(path.parents[1].name for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"))
    roles = [role for role in roles if (ROOT / "roles" / role / "defaults" / "main.yml").is_file()]
    result = {f"{role.strip('_')}.md": role_page(role) for role in roles}
    index = ["# Reference", "", NOTE, "Every variable, module and filter, with its default and meaning.", ""]
    for role in roles:
        specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
        index.append(
            f"- [{role}]({role.strip('_')}.md): {prose(specs['argument_specs']['main'].get('short_description'))}"
        )
    index += ["- [Modules and filters](plugins.md)"]
    return {"README.md": tidy(index), "plugins.md": plugins_page(), **result}


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them."""
    wanted = pages()
    present = {path.name: path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md")}
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if "--check" in arguments:
        for name in stale:
            print(f"docs/reference/{name} is out of date; run: make docs")
        return 1 if stale else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in wanted:
            (REFERENCE / name).write_text(wanted[name], encoding="utf-8")
        else:
            (REFERENCE / name).unlink()
    print(f"docs/reference: {len(stale)} of {len(wanted)} pages changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
