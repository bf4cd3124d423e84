#!/usr/bin/env bash
# Create or update the Python environment from the hashed lock. Needs Python 3.11 or newer and nothing else.
#
#   scripts/setup.sh VENV LOCK        PYTHON=python3.12 picks another interpreter
set -euo pipefail

venv=$1 lock=$2 python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "Python 3.11 or newer is needed, $python is $("$python" --version 2>&1 || true). Type:  make setup PYTHON=python3.12" >&2
  exit 1
fi
# Debian and Ubuntu keep what `python3 -m venv` needs in a package of its own.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Missing on this machine: $package. Type:  sudo apt-get install --no-install-recommends $package" >&2
    exit 1
  fi
  echo "Installing $package ..."
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
fi

echo "Setting up the Python environment (about 30 s) ..."
# An environment whose interpreter is gone (a moved folder, a removed Python) is made anew.
"$venv/bin/python" -c '' 2>/dev/null || rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
