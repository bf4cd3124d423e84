#!/usr/bin/env bash
# Make sure that a Docker engine answers and that mmdebstrap is there: install them as root, else print what to type.
set -euo pipefail

missing=()
command -v dockerd >/dev/null || missing+=(docker.io iptables)
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
command -v zstd >/dev/null || missing+=(zstd)
# A working engine elsewhere (DOCKER_HOST, Docker Desktop on WSL2) needs no dockerd here.
if docker info >/dev/null 2>&1; then missing=("${missing[@]/docker.io/}"); missing=("${missing[@]/iptables/}"); fi
needed=$(echo "${missing[*]:-}" | xargs)

if [ -n "$needed" ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Missing on this machine: $needed. Type:  sudo apt-get install --no-install-recommends $needed" >&2
    exit 1
  fi
  echo "Installing $needed ..."
  apt-get update -qq
  # shellcheck disable=SC2086  # a list of package names
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $needed >/dev/null
fi

docker info >/dev/null 2>&1 && exit 0
if [ -d /run/systemd/system ]; then
  echo "The Docker engine does not answer. Type:  sudo systemctl start docker   (and be a member of the group docker)" >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "The Docker engine does not run and there is no systemd to start it. Type:  sudo dockerd &" >&2
  exit 1
fi
# No systemd here (a container, a build machine): start the engine by hand, detached from this shell.
log=/var/log/dockerd.log
for _ in 1 2; do
  rm -f /var/run/docker.pid
  setsid dockerd >"$log" 2>&1 </dev/null &
  pid=$!
  for _ in $(seq 60); do
    if docker info >/dev/null 2>&1; then
      echo "Started dockerd (pid $pid, log $log). Stop it with:  kill $pid"
      exit 0
    fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.5
  done
  kill "$pid" 2>/dev/null || true
  # A containerd that outlived its engine keeps the next one from starting.
  left=$(cat /var/run/docker/containerd/containerd.pid 2>/dev/null || true)
  if [ -n "$left" ] && [ "$(cat "/proc/$left/comm" 2>/dev/null)" = containerd ]; then
    kill "$left" 2>/dev/null || true
  fi
done
echo "dockerd did not start; the last lines of $log:" >&2
tail -n 20 "$log" >&2
exit 1
