#!/bin/sh
# Put Debian's promtool into VENV/bin without installing its package, which would start a Prometheus server.
set -eu
venv=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
if ! apt-get download -qq prometheus 2>/dev/null; then
    if [ "$(id -u)" -eq 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
    apt-get download -qq prometheus
fi
dpkg-deb --extract prometheus_*.deb unpacked
cd "$OLDPWD"
install -m 755 "$folder/unpacked/usr/bin/promtool" "$venv/bin/promtool"
