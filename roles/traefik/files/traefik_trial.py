#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load a configuration in a second Traefik that has no network, and say what is wrong with it.

`check` is called by traefik-publish. Run as a program with ``--probe DIRECTORY`` and settings on standard input, this
file is the part that runs inside the namespace: it prints one complaint a line, nothing when all is well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_SECONDS = 20
COMPLAINT_SECONDS = 1
# Lets the check ask its own instance what it made of the configuration; the running one has no API.
API_ROUTER = (
    'http: {routers: {config-check: {rule: "PathPrefix(`/api`)", entryPoints: [ops], service: "api@internal"}}}\n'
)


class RefusedError(Exception):
    """The configuration is not fit to be published; the message says why and what to do."""


def read(path: str | Path, what: str) -> str:
    """Return the text of a file that must be there."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RefusedError(f"{what}: {error.strerror}: {path}") from None


def write(directory: Path, files: dict[str, str], group: int) -> None:
    """Write a generation that root owns and Traefik's group reads."""
    for folder in (directory, directory / "dynamic"):
        folder.mkdir(mode=0o750)
        os.chown(folder, 0, group)
        folder.chmod(0o750)
    for name, text in files.items():
        path = directory / name
        path.touch(mode=0o640)
        os.chown(path, 0, group)
        path.chmod(0o640)
        path.write_text(text, encoding="utf-8")


def handshake(settings: dict[str, Any], chain: str) -> str | None:
    """Connect to the checked instance as a browser does; return what is wrong with the certificate."""
    leaf = chain[: chain.index("-----END CERTIFICATE-----") + 25] + "\n"
    context = ssl.create_default_context(cadata=leaf)
    context.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    address = (settings["bind_address"].strip("[]") or "127.0.0.1", settings["https_port"])
    try:
        with (
            socket.create_connection(address, timeout=5) as connection,
            context.wrap_socket(connection, server_hostname=settings["domain"]),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return f"The certificate is not fit for {settings['domain']}: {error.verify_message}"
    except (ssl.SSLError, OSError) as error:
        return f"No TLS connection to {settings['domain']} (does the certificate hold this name?): {error}"


def fetch(settings: dict[str, Any], path: str) -> bytes | None:
    """Return what the checked instance answers on its ops address, or None."""
    try:
        with urllib.request.urlopen(f"http://{settings['ops']}{path}", timeout=2) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def complaints(lines: list[str], report: dict[str, Any]) -> Iterator[str]:
    """Yield what the checked instance found wrong, from its log and from its API."""
    for kind in ("routers", "middlewares", "services"):
        for name, item in report.get(kind, {}).items():
            errors = item.get("error") or []
            for error in [errors] if isinstance(errors, str) else errors:
                yield f"{kind[:-1]} {name}: {error}"
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = {"level": "error", "message": line} if line.startswith(("{", "command ")) else {}
        # There is no network here, so asking for certificates fails.
        if entry.get("level") in ("error", "fatal", "panic") and ".acme" not in entry.get("providerName", ""):
            words = [
                entry.get(key)
                for key in ("routerName", "middlewareName", "serviceName", "filename", "message", "error")
            ]
            yield ": ".join(str(word) for word in words if word)


def probe(settings: dict[str, Any], directory: Path) -> list[str]:
    """Run inside the namespace: start Traefik on a generation and return everything that is wrong with it."""
    process = subprocess.Popen(
        [settings["binary"], f"--configFile={directory}/traefik.yml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []

    def collect() -> None:
        for line in process.stdout or ():
            lines.append(line.strip())

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    found: list[str] = []
    report: dict[str, Any] | None = None
    deadline = time.monotonic() + START_SECONDS
    try:
        while report is None:
            if process.poll() is not None:
                reader.join(2)
                return [line for line in lines if line] or [f"Traefik ended with code {process.returncode}"]
            found = list(complaints(list(lines), {}))
            if found:
                # Wait a little for the rest of the complaints, but not for a configuration that cannot be loaded.
                deadline = min(deadline, time.monotonic() + COMPLAINT_SECONDS)
            if time.monotonic() > deadline:
                return found or ["Traefik did not load the configuration in time"]
            raw = fetch(settings, "/api/rawdata")
            if raw:
                report = json.loads(raw)
            else:
                time.sleep(0.05)
        found = list(complaints(list(lines), report))
        # Traefik ignores a misspelt section of the static file, so ask what the watchdog and the monitoring will ask.
        found += [
            f"{path} does not answer on {settings['ops']}"
            for path in ("/ping", "/metrics")
            if not fetch(settings, path)
        ]
        if settings["chain"]:
            wrong = handshake(settings, settings["chain"])
            found += [wrong] if wrong else []
        return found
    finally:
        process.kill()
        process.wait()


def check(settings: dict[str, Any], files: dict[str, str], new_certificate: bool, group: int) -> None:
    """Load a generation in a second Traefik without network; raise `RefusedError` with its complaints."""
    root = Path(settings["live"]) / ".check"
    shutil.rmtree(root, ignore_errors=True)
    trial = dict(files)
    static = (
        trial["traefik.yml"].replace(f"{settings['live']}/live", str(root)).replace(settings["state"], f"{root}/state")
    )
    trial["traefik.yml"] = static if re.search(r"^api:", static, re.MULTILINE) else static + "\napi: {}\n"
    trial["dynamic/config-check.yml"] = API_ROUTER
    write(root, trial, group)
    (root / "state").mkdir(mode=0o770)
    os.chown(root / "state", 0, group)
    (root / "state").chmod(0o770)
    chain = (
        settings["certificate"] and new_certificate and read(settings["certificate"]["certificate"], "The certificate")
    )
    inner = {**settings, "chain": chain or ""}
    try:
        done = subprocess.run(
            ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--slice=n8n-platform.slice"]
            + [
                f"--property={option}"
                for option in (
                    f"User={settings['user']}",
                    "PrivateNetwork=yes",
                    "PrivateTmp=yes",
                    "ProtectSystem=strict",
                    "ProtectHome=yes",
                    "NoNewPrivileges=yes",
                    "AmbientCapabilities=CAP_NET_BIND_SERVICE",
                    f"ReadWritePaths={root}/state",
                    "MemoryMax=512M",
                    f"RuntimeMaxSec={2 * START_SECONDS}",
                )
            ]
            + [sys.executable, "-I", os.path.abspath(__file__), "--probe", str(root)],
            input=json.dumps(inner),
            capture_output=True,
            text=True,
            check=False,
        )
        found = done.stdout.strip().splitlines()
        if done.returncode or found:
            raise RefusedError(
                "Traefik refuses the configuration, the old one stays active:\n  "
                + "\n  ".join(dict.fromkeys(found or done.stderr.strip().splitlines()[-5:]))
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    print("\n".join(probe(json.load(sys.stdin), Path(sys.argv[2]))))
