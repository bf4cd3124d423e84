#!/bin/sh
# Apply firewall rules in a way that a mistake undoes itself.
#
#   firewall apply RULES CONFIRMED SECONDS   load RULES, and go back to CONFIRMED after SECONDS unless confirmed by then
#   firewall confirm RULES CONFIRMED         keep RULES: cancel the way back, and load them at every boot from now on
#   firewall revert CONFIRMED                load CONFIRMED, or remove our table if nothing was ever confirmed
set -eu
timer=n8n-platform-firewall-revert
table=n8n_platform

case "${1:-}" in
apply)
  rules=$2 confirmed=$3 seconds=$4
  systemctl stop "$timer.timer" 2>/dev/null || true
  systemctl reset-failed "$timer.service" 2>/dev/null || true
  systemd-run --quiet --collect --unit="$timer" --on-active="$seconds" --timer-property=AccuracySec=500ms \
    "$0" revert "$confirmed"
  if ! nft --file "$rules"; then
    # One transaction: nothing was changed.
    systemctl stop "$timer.timer"
    exit 1
  fi
  ;;
confirm)
  rules=$2 confirmed=$3
  if ! systemctl stop "$timer.timer" 2>/dev/null; then
    echo "Too late: the rules were taken back already." >&2
    exit 1
  fi
  cp "$rules" "$confirmed.new"
  mv "$confirmed.new" "$confirmed"
  ;;
revert)
  confirmed=$2
  if [ -s "$confirmed" ]; then
    nft --file "$confirmed"
    echo "Nobody confirmed the new rules: the previous ones are back."
  else
    nft delete table inet "$table"
    echo "Nobody confirmed the new rules, the first on this host: our table was removed."
  fi
  ;;
*)
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
