#!/usr/bin/env bash
# Renew the locks from their .in files (requirements/, files/platform/): exact versions with hashes and no registry address.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .venv/bin/uv)
[ -x "$uv" ] || .venv/bin/pip install --quiet uv
options=(--quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links)
"$uv" pip compile "${options[@]}" requirements/controller.in -o requirements/controller.txt
"$uv" pip compile "${options[@]}" files/platform/bridge.in -c requirements/controller.txt -o files/platform/bridge.txt
"$uv" pip compile "${options[@]}" requirements/test.in -c requirements/controller.txt -c files/platform/bridge.txt -o requirements/test.txt
