# SPDX-License-Identifier: GPL-3.0-or-later
"""n8n's programs in a quarantine: no network but this host, nothing left behind, secrets as credentials."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.pipeline import Command
from n8n_platform.restore.host import N8n, Runner

SECONDS = 300
EXPORTED = re.compile(r"Successfully exported (\d+) credentials")
FILES = {
    "n8n_encryption_key": "N8N_ENCRYPTION_KEY_FILE",
    "n8n_jwt_secret": "N8N_USER_MANAGEMENT_JWT_SECRET_FILE",
    "postgres_n8n_password": "DB_POSTGRESDB_PASSWORD_FILE",
    "redis_n8n_password": "QUEUE_BULL_REDIS_PASSWORD_FILE",
}
# What is decrypted lies in memory only, and only for the program itself; it is gone when the program ends.
SANDBOX = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "TemporaryFileSystem=/tmp:mode=1777,size=512M,nosuid,nodev",
    "PrivateDevices=yes",
    "UMask=0077",
    "CapabilityBoundingSet=",
)
# Nothing a restored workflow does may leave this host.
QUARANTINE = ("IPAddressDeny=any", "IPAddressAllow=localhost")


def command(
    n8n: N8n,
    unit: str,
    words: str,
    secrets_dir: Path,
    variables: Mapping[str, str],
    memory_mb: int,
    properties: tuple[str, ...] = (),
    wait: bool = True,
) -> Command:
    """Return the command that runs ``n8n <words>`` as a transient unit."""
    # n8n starts its task runner by the name `node`; /tmp is the unit's own memory.
    path = f"{n8n.node.parent}:/usr/bin:/bin"
    exports = {"PATH": path, "HOME": "/tmp", "N8N_USER_FOLDER": "/tmp", **variables}  # noqa: S108
    script = ["set -eu"]
    script += [f'export {FILES[name]}="$CREDENTIALS_DIRECTORY/{name}"' for name in n8n.credentials]
    script += [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    program = f"{n8n.node} --max-old-space-size={max(256, memory_mb // 2)} {n8n.release}/node_modules/n8n/bin/n8n"
    script.append(f"exec {program} {words}")
    options = [
        f"--unit={unit}",
        f"--uid={n8n.user}",
        f"--gid={n8n.user}",
        "--slice=n8n-platform.slice",
        "--working-directory=/",
    ]
    options += ["--wait", "--pipe"] if wait else []
    options += [f"--property={line}" for line in (*SANDBOX, *properties)]
    options += [f"--property=MemoryMax={memory_mb}M", f"--property=EnvironmentFile={n8n.env_file}"]
    options += [f"--property=LoadCredential={name}:{secrets_dir}/{name}" for name in n8n.credentials]
    start = ("systemd-run", "--quiet", "--collect", "--expand-environment=no", *options)
    return Command((*start, "/bin/sh", "-c", "\n".join(script)))


def decrypt_credentials(run: Runner, n8n: N8n, secrets_dir: Path, expected: int, variables: Mapping[str, str]) -> int:
    """Decrypt every credential the way n8n does, keep nothing, and return how many there were.

    Raises:
        BackupError: one cannot be decrypted with this host's key.
    """
    if expected == 0:
        return 0
    words = "export:credentials --all --decrypted --output=/tmp/credentials.json"
    quiet = {"N8N_LOG_LEVEL": "info", "N8N_LOG_FORMAT": "text", "NO_COLOR": "1", **variables}
    unit = "n8n-platform-decrypt.service"
    said = run(command(n8n, unit, words, secrets_dir, quiet, 1024), timeout=SECONDS)
    found = EXPORTED.search(said)
    if found is None:
        reason = " ".join(said.split())[-200:]
        raise BackupError(f"The credentials cannot be decrypted with the encryption key of this host: {reason}")
    if int(found[1]) != expected:
        raise BackupError(f"Only {found[1]} of {expected} credentials could be decrypted.")
    return expected
