#!/usr/bin/env bash
# Build the Docker image of the test hosts: Debian 13 with systemd, as a fresh server has it. Does nothing when it exists.
#
#   scripts/test-image.sh [--force]
set -euo pipefail

image=n8n-platform-testhost
# Raise the number when the contents below change, so that old images are replaced.
revision=1
packages=systemd,systemd-sysv,dbus,python3,python3-apt,ca-certificates,iproute2,procps,sudo,nftables,cron,locales,zstd

if [ "${1:-}" != --force ] && [ "$(docker image inspect -f '{{index .Config.Labels "revision"}}' "$image" 2>/dev/null)" = "$revision" ]; then
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "Building the test host image $image (about 40 s) ..."
# PrivateUsers= needs user namespaces, which containers rarely have; the drop-in belongs to the image, never to a role.
cat >"$work/10-container.conf" <<'EOF'
[Service]
PrivateUsers=no
EOF
mmdebstrap --quiet --variant=minbase --include="$packages" \
  --customize-hook="mkdir -p \"\$1/etc/systemd/system/service.d\"" \
  --customize-hook="upload '$work/10-container.conf' /etc/systemd/system/service.d/10-container.conf" \
  --customize-hook="rm -f \"\$1/etc/machine-id\"; touch \"\$1/etc/machine-id\"" \
  trixie "$work/image.tar"
docker import --change "LABEL revision=$revision" --change 'CMD ["/sbin/init"]' "$work/image.tar" "$image" >/dev/null
docker image inspect -f 'Built {{.Id}} ({{.Size}} bytes)' "$image"
