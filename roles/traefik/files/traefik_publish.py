#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check Traefik's configuration with the real program and hand it over as a whole.

Traefik has no command that checks a configuration: a wrong rule drops its router and the rest goes on. So the sources
(static file, dynamic files, certificate, editor password) are put together as a *generation*, a second Traefik loads it
inside a network namespace of its own, and only when that one reports no error does the link ``live`` move to the new
generation and the running Traefik reload it. Otherwise nothing changes and the exit code is 1.

Usage: traefik-publish SETTINGS.json. Prints ``{"changed": bool, "restart": [units]}``; the units are those that were
started before their files were written. It is safe to run at any time; without a change it takes 0.2 s.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import fcntl
import grp
import hashlib
import hmac
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from traefik_trial import RefusedError, check, read, write

UNITS = {
    "traefik.service": ("/etc/systemd/system/traefik.service",),
    "traefik-web.socket": ("/etc/systemd/system/traefik-web.socket",),
    "traefik-websecure.socket": ("/etc/systemd/system/traefik-websecure.socket",),
    "traefik-publish.path": ("/etc/systemd/system/traefik-publish.path",),
}
PAIR_SECONDS = 5


def bcrypt(password: str, setting: str) -> str:
    """Hash with libcrypt; ``setting`` is an earlier hash (to verify) or what `salt` returns."""
    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    hashed = library.crypt(password.encode(), setting.encode())
    if not hashed or hashed.startswith(b"*"):
        raise RefusedError("The editor password cannot be hashed: bcrypt allows costs from 4 to 31")
    return str(hashed.decode())


def salt(cost: int) -> str:
    """Return a fresh bcrypt setting of 2**cost rounds."""
    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt_gensalt.restype = ctypes.c_char_p
    library.crypt_gensalt.argtypes = [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_int]
    made = library.crypt_gensalt(b"$2b$", cost, os.urandom(16), 16)
    if not made:
        raise RefusedError(f"traefik_editor_bcrypt_cost is {cost}: bcrypt allows 4 to 31")
    return str(made.decode())


def editor_users(editor: dict[str, Any], current: str) -> str:
    """Return the dynamic file with the editor's user; ``current`` stays as it is while it fits the password."""
    password = read(editor["password_file"], "The password of the editor is missing; the role secrets makes it").strip()
    if not password:
        raise RefusedError(f"The password of the editor is empty: {editor['password_file']}")
    prefix = f"{editor['user']}:$2b${int(editor['cost']):02d}$"
    known = re.search(r'users: \["([^":]+):([^"]+)"\]', current)
    fits = known and f"{known[1]}:{known[2]}".startswith(prefix)
    if known and fits and hmac.compare_digest(bcrypt(password, known[2]), known[2]):
        return current
    users = json.dumps([f"{editor['user']}:{bcrypt(password, salt(int(editor['cost'])))}"])
    return (
        "# Made by traefik-publish from the secret traefik_editor_password.\n"
        "http:\n  middlewares:\n    editor-auth:\n"
        f"      basicAuth: {{users: {users}, removeHeader: true, realm: n8n}}\n"
    )


def certificate(paths: dict[str, str]) -> str:
    """Return the dynamic file with the certificate and its key, one text so that they change together.

    Whatever renews them may write one file after the other: wait a little for a pair that fits.
    """
    deadline = time.monotonic() + PAIR_SECONDS
    while True:
        chain = read(
            paths["certificate"],
            "The certificate is missing; the role pki makes it unless traefik_tls_mode says otherwise",
        )
        key = read(paths["key"], "The key of the certificate is missing")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(paths["certificate"], paths["key"], "")
        except (ssl.SSLError, OSError) as error:
            if time.monotonic() > deadline:
                raise RefusedError(f"{paths['certificate']} and {paths['key']} do not fit together: {error}") from None
            time.sleep(0.2)
            continue
        if chain == Path(paths["certificate"]).read_text(encoding="utf-8"):
            break

    def block(name: str, text: str) -> str:
        return f"      {name}: |\n" + "".join(f"        {line}\n" for line in text.strip().splitlines())

    return (
        "# Made by traefik-publish from the certificate files.\ntls:\n  certificates:\n    -\n"
        + block("certFile", chain)
        + block("keyFile", key)
    )


def build(settings: dict[str, Any], live: Path) -> dict[str, str]:
    """Return the files of the generation the sources describe, by relative path."""
    source = Path(settings["source"])
    files = {"traefik.yml": read(source / "traefik.yml", "The static configuration is missing")}
    for path in sorted((source / "dynamic").glob("*.yml")):
        files[f"dynamic/{path.name}"] = read(path, "A dynamic file went away")
    if settings["editor"]:
        current = live / "dynamic/editor-auth.yml"
        files["dynamic/editor-auth.yml"] = editor_users(
            settings["editor"], current.read_text(encoding="utf-8") if current.exists() else ""
        )
    if settings["certificate"]:
        files["dynamic/certificate.yml"] = certificate(settings["certificate"])
    return files


def start_of(unit: str) -> float | None:
    """Return when a unit was started (seconds since the epoch), or None when it does not run."""
    key = "ExecMainStartTimestampMonotonic" if unit.endswith(".service") else "ActiveEnterTimestampMonotonic"
    shown = subprocess.run(
        ["systemctl", "show", unit, "--property", f"ActiveState,{key}"], capture_output=True, text=True, check=True
    ).stdout
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if values.get("ActiveState") not in ("active", "reloading"):
        return None
    return time.time() - time.monotonic() + int(values[key]) / 1e6


def outdated(settings: dict[str, Any], live: Path) -> list[str]:
    """Return the running units that were started before what they run was written."""
    tool = Path(settings["binary"]).parent.parent
    extra = {"traefik.service": (str(live / "traefik.yml"), str(tool))}
    late = []
    for unit, paths in UNITS.items():
        started = start_of(unit)
        newest = max(
            (os.lstat(path).st_mtime for path in (*paths, *extra.get(unit, ())) if os.path.lexists(path)), default=0.0
        )
        if started is not None and newest > started:
            late.append(unit)
    # systemd opens a socket only while its service is stopped, so these go together.
    return list(UNITS) if any(unit.endswith(".socket") for unit in late) else late


def publish(settings: dict[str, Any]) -> bool:
    """Bring the sources into effect; return whether anything changed."""
    base = Path(settings["live"])
    link = base / "live"
    group = grp.getgrnam(settings["user"]).gr_gid
    files = build(settings, link)
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    name = f"generation-{digest}"
    if link.is_symlink() and link.readlink().name == name:
        return False
    before = {path: (link / path).read_text(encoding="utf-8") for path in files if (link / path).exists()}
    certificate_file = "dynamic/certificate.yml"
    check(settings, files, files.get(certificate_file) != before.get(certificate_file), group)
    target, staging = base / name, base / ".staging"
    for leftover in (target, staging):
        shutil.rmtree(leftover, ignore_errors=True)
    write(staging, files, group)
    if before.get("traefik.yml") == files["traefik.yml"]:
        shutil.copystat(link / "traefik.yml", staging / "traefik.yml")
    staging.rename(target)
    old = link.readlink().name if link.is_symlink() else ""
    fresh = base / ".live.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.replace(link)
    for generation in base.glob("generation-*"):
        if generation.name not in (name, old):
            shutil.rmtree(generation)
    if start_of("traefik.service") is not None:
        subprocess.run(["systemctl", "reload", "traefik.service"], check=True)
    return True


def main() -> int:
    """Entry point."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(settings["live"]).mkdir(mode=0o755, exist_ok=True)
    with (Path(settings["live"]) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            changed = publish(settings)
        except RefusedError as error:
            print(error, file=sys.stderr)
            return 1
        print(json.dumps({"changed": changed, "restart": outdated(settings, Path(settings["live"]) / "live")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
