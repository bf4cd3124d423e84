#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the web configuration of Prometheus and its relatives: TLS and one user.

    web-config USER OUTPUT      in a unit: ExecStartPre=

Reads the password and the certificate from the unit's credentials (metrics_password, host.crt, host.key). The hash is
made anew at each start, so that none lies on the disk.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import sys
from pathlib import Path

# The generated password has more entropy than any cost adds.
COST = 5


def bcrypt(password: str) -> str:
    """Return the bcrypt hash of a password, by the system's libcrypt."""
    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt_gensalt.restype = library.crypt.restype = ctypes.c_char_p
    library.crypt_gensalt.argtypes = [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_int]
    salt = bytes(library.crypt_gensalt(b"$2b$", COST, os.urandom(16), 16))
    return bytes(library.crypt(password.encode(), salt)).decode()


def main() -> int:
    """Entry point of the program."""
    user, output = sys.argv[1], Path(sys.argv[2])
    credentials = Path(os.environ["CREDENTIALS_DIRECTORY"])
    password = (credentials / "metrics_password").read_text(encoding="utf-8").strip()
    tls = {"cert_file": f"{credentials}/host.crt", "key_file": f"{credentials}/host.key", "min_version": "TLS12"}
    output.touch(mode=0o600)
    # JSON is YAML.
    document = {"tls_server_config": tls, "basic_auth_users": {user: bcrypt(password)}}
    output.write_text(json.dumps(document) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
