# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads from a vendor's own address: resumable, and only ever complete under the final name."""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from artifacts.store.archive import CHUNK
from artifacts.store.errors import FetchError
from artifacts.store.progress import Reporter, human_size
from artifacts.store.run import redact

HEADERS = {"User-Agent": "n8n-platform-artifacts", "Accept-Encoding": "identity"}
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 3
PAUSE_SECONDS = 2.0
_HTTP_PARTIAL = 206
_HTTP_RANGE_NOT_SATISFIABLE = 416
_HTTP_RETRY = {408, 425, 429, 500, 502, 503, 504}


def download(url: str, target: Path, label: str, reporter: Reporter) -> None:
    """Fetch ``url`` into ``target``; a partial file of an earlier attempt is continued where the server allows it.

    Proxies and extra certificate authorities are taken from the environment (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).
    Raises FetchError when the server cannot be reached or refuses.
    """
    _refuse_plain(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".etag")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(url, part, tag, label, reporter)
            break
        except urllib.error.HTTPError as error:
            if error.code == _HTTP_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
            elif error.code not in _HTTP_RETRY or attempt == ATTEMPTS:
                raise FetchError(f"{label}: {redact(url)} answered {error.code} {error.reason}") from error
        except urllib.error.URLError as error:  # no connection at all: trying again at once would not help
            raise FetchError(f"{label}: cannot reach {redact(url)}: {error.reason}; check network and proxy") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS:
                raise FetchError(
                    f"{label}: cannot download {redact(url)}: {error}; run the same command again to continue"
                ) from error
        reporter.say(f"{label}: the download broke off, attempt {attempt + 1} of {ATTEMPTS}")
        time.sleep(PAUSE_SECONDS)
    os.replace(part, target)
    tag.unlink(missing_ok=True)


def _attempt(url: str, part: Path, tag: Path, label: str, reporter: Reporter) -> None:
    request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310  `download` has checked the scheme
    have = part.stat().st_size if part.exists() else 0
    validator = tag.read_text(encoding="utf-8") if tag.exists() else ""
    if have and validator:  # without a validator the rest might belong to another file
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
        _refuse_plain(response.url)  # a redirect may have led elsewhere
        resumed = response.status == _HTTP_PARTIAL and _range_start(response.headers.get("Content-Range")) == have
        have = have if resumed else 0
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        tag.write_text("" if validator.startswith("W/") else validator, encoding="utf-8")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if resumed:
            reporter.say(f"{label}: continuing after {human_size(have)}")
        with part.open("ab" if resumed else "wb") as sink:
            _copy(response, sink, have, total, lambda text: reporter.tick(f"{label}: {text}"))


def _refuse_plain(url: str) -> None:
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise FetchError(f"refusing {redact(url)}: only https addresses are downloaded")


def _copy(source: IO[bytes], sink: IO[bytes], have: int, total: int | None, tick: Callable[[str], None]) -> None:
    started, first = time.monotonic(), have
    while block := source.read(CHUNK):
        sink.write(block)
        have += len(block)
        speed = (have - first) / max(time.monotonic() - started, 0.001)
        share = f" of {human_size(total)}" if total else ""
        tick(f"{human_size(have)}{share}, {human_size(speed)}/s")
    if total is not None and have != total:
        raise http.client.IncompleteRead(b"", total - have)


def _range_start(content_range: str | None) -> int | None:
    match = re.match(r"bytes (\d+)-", content_range or "")
    return int(match[1]) if match else None


def checksum_from_file(text: str, filename: str) -> str | None:
    """Find the sha256 of ``filename`` in a vendor's checksum file (``<hash>  <name>`` lines, or a lone hash)."""
    lone = re.fullmatch(r"\s*([0-9a-f]{64})\s*", text)
    if lone:
        return lone[1]
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})\s+[ *]?(?:\./)?(\S+)\s*", line)
        if match and match[2] == filename:
            return match[1]
    return None
