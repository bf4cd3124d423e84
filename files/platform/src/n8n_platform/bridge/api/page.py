# SPDX-License-Identifier: GPL-3.0-or-later
"""The page /pulsar/docs, made from the OpenAPI document: no scripts, nothing fetched from elsewhere."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from n8n_platform.bridge.api.problems import KINDS

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "code,pre{font:14px/1.4 ui-monospace,monospace;background:#f3f4f6}pre{padding:.8rem;overflow:auto}"
    "h2{border-top:1px solid #d0d7de;padding-top:1.5rem}.m{font-weight:700;color:#0550ae}"
    "table{border-collapse:collapse}td,th{border:1px solid #d0d7de;padding:.3rem .6rem;text-align:left;"
    "vertical-align:top}@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}"
    "code,pre{background:#161b22}td,th,h2{border-color:#30363d}.m{color:#79c0ff}}"
)
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "public, max-age=300",
}


def prose(text: str) -> str:
    """Return Markdown's little: paragraphs, lists, code and bold."""
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text.strip())))
    blocks = []
    for block in escaped.split("\n\n"):
        if block.startswith("- "):
            items = re.split(r"(?:^|\n)- ", block)[1:]
            blocks.append("<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")
        else:
            blocks.append(f"<p>{block}</p>")
    return "\n".join(blocks)


def example(content: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """Return an example of a body, or nothing."""
    for media, entry in content.items():
        name = entry.get("schema", {}).get("$ref", "").rpartition("/")[2]
        found = entry.get("example", schemas.get(name, {}).get("example"))
        if found is not None:
            return f"<p><code>{media}</code></p><pre>{html.escape(json.dumps(found, indent=2))}</pre>"
    return ""


def operation(path: str, method: str, item: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section of one operation."""
    yield f'<h3 id="{item["operationId"]}">{html.escape(item["summary"])}</h3>'
    yield f'<p><code><span class="m">{method.upper()}</span> {html.escape(path)}</code></p>'
    yield prose(item.get("description", ""))
    rows = [
        f"<tr><td><code>{html.escape(one['name'])}</code></td><td>{one['in']}</td>"
        f"<td>{prose(one.get('description', ''))}</td></tr>"
        for one in item.get("parameters", [])
    ]
    if rows:
        yield "<table><tr><th>parameter</th><th>in</th><th></th></tr>" + "".join(rows) + "</table>"
    if body := example(item.get("requestBody", {}).get("content", {}), schemas):
        yield "<p>Request:</p>" + body
    for status, answer in item["responses"].items():
        yield f"<p><b>{status}</b> {html.escape(answer['description'])}</p>"
        if status.startswith("2"):
            yield example(answer.get("content", {}), schemas)


def fields(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of the fields of an event."""
    yield "<table><tr><th>field</th><th></th></tr>"
    for name, item in schema["properties"].items():
        needed = " (needed)" if name in schema["required"] else ""
        yield f"<tr><td><code>{name}</code>{needed}</td><td>{prose(item['description'])}</td></tr>"
    yield "</table>"


def render(document: Mapping[str, Any]) -> str:
    """Return the page."""
    schemas = document["components"]["schemas"]
    parts = [prose(document["info"]["description"]), "<h2>The fields of an event</h2>", *fields(schemas["Draft"])]
    for tag in document["tags"]:
        parts.append(f"<h2>{html.escape(tag['name'].capitalize())}</h2>{prose(tag['description'])}")
        for path, methods in document["paths"].items():
            for method, item in methods.items():
                if tag["name"] in item.get("tags", []):
                    parts.extend(operation(path, method, item, schemas))
    parts.append("<h2>Problems</h2><table>")
    parts.extend(
        f'<tr id="{kind}"><td><code>{kind}</code></td><td>{status}</td><td>{html.escape(title)}</td></tr>'
        for kind, (status, title) in KINDS.items()
    )
    parts.append('</table><p>For programs: <a href="/pulsar/openapi.json">/pulsar/openapi.json</a></p>')
    title = html.escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{''.join(parts)}</html>"
    )
