#!/bin/sh
# program.sh PACKAGE PROGRAM TARGET: put one program of a Debian package where it is wanted without installing the
# package, which would start a service.
set -eu
package=$1 program=$2 target=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
if ! apt-get download -qq "$package" 2>/dev/null; then
    if [ "$(id -u)" -eq 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
    apt-get download -qq "$package"
fi
dpkg-deb --extract "$package"_*.deb unpacked
cd "$OLDPWD"
install -m 755 "$folder/unpacked/$program" "$target"
