# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters for certificate files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from ansible.errors import AnsibleFilterError

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s.+?-----END CERTIFICATE-----", re.DOTALL)


def certificate_files(texts: Sequence[str], sources: Sequence[str], directory: str) -> list[dict[str, str]]:
    """Return the certificates of PEM files as entries of the module ``host_files``, one certificate a file.

    ``update-ca-certificates`` skips a file that holds more than one. ``sources`` names the files the ``texts`` were
    read from, in the same order. A text without a certificate, or with a private key, is an error.
    """
    entries = []
    for text, source in zip(texts, sources, strict=True):
        found = CERTIFICATE.findall(text)
        if not found:
            raise AnsibleFilterError(f"{source} holds no PEM certificate (-----BEGIN CERTIFICATE-----).")
        if "PRIVATE KEY-----" in text:
            raise AnsibleFilterError(f"{source} holds a private key: give the certificate alone, trust is public.")
        stem = PurePosixPath(source).stem
        for number, certificate in enumerate(found, start=1):
            name = stem if len(found) == 1 else f"{stem}-{number}"
            entries.append({"path": f"{directory}/{name}.crt", "content": certificate + "\n"})
    paths = [entry["path"] for entry in entries]
    twice = sorted({PurePosixPath(path).name for path in paths if paths.count(path) > 1})
    if twice:
        raise AnsibleFilterError(f"Two of the certificate files are called {', '.join(twice)}: rename one of them.")
    return entries


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"certificate_files": certificate_files}
