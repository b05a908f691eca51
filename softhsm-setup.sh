#!/bin/sh
# Make a private SoftHSM2 token: its own SOFTHSM2_CONF, its own folder, no global state.
#
#   ./softhsm-setup.sh [FOLDER [LABEL]]      default: ./token estd
#
# FOLDER then holds softhsm2.conf, tokens/, pin and so-pin (each readable by you alone). Run again, it changes nothing.
# What to export is printed on standard output: eval "$(./softhsm-setup.sh FOLDER)".
set -eu

folder=${1:-token}
label=${2:-estd}

say() { printf '%s\n' "$*" >&2; }

if ! command -v softhsm2-util >/dev/null 2>&1; then
    say "softhsm2-util is missing: apt-get install softhsm2"
    exit 1
fi
module=
for candidate in \
    /usr/lib/softhsm/libsofthsm2.so \
    "/usr/lib/$(uname -m)-linux-gnu/softhsm/libsofthsm2.so" \
    /usr/lib64/pkcs11/libsofthsm2.so; do
    if [ -e "$candidate" ]; then
        module=$candidate
        break
    fi
done
if [ -z "$module" ]; then
    say "libsofthsm2.so is missing: apt-get install softhsm2"
    exit 1
fi

umask 077
mkdir -p "$folder/tokens"
folder=$(cd "$folder" && pwd)
SOFTHSM2_CONF=$folder/softhsm2.conf
export SOFTHSM2_CONF

[ -e "$SOFTHSM2_CONF" ] || cat >"$SOFTHSM2_CONF" <<CONF
directories.tokendir = $folder/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
CONF

new_pin() { od -An -N 16 -tx1 /dev/urandom | tr -d ' \n'; }
[ -s "$folder/pin" ] || new_pin >"$folder/pin"
[ -s "$folder/so-pin" ] || new_pin >"$folder/so-pin"

if softhsm2-util --show-slots | grep -q "^ *Label: *$label *\$"; then
    say "token $label in $folder: already there"
else
    # softhsm2-util takes a PIN only as an argument or at a terminal; the terminal keeps it out of the process list.
    # Its prompts want a terminal, so python's pty gives it one.
    python3 - "$folder" "$label" <<'PY'
import os, pty, sys, time

folder, label = sys.argv[1:]
answers = {b"SO PIN": f"{folder}/so-pin", b"user PIN": f"{folder}/pin"}
seen = b""


def read(descriptor):
    """Pass the dialogue on unseen, and answer each question with the PIN that it asks for."""
    global seen
    data = os.read(descriptor, 1024)
    seen += data
    for question, path in answers.items():
        if question in seen and seen.rstrip().endswith(b":"):
            os.write(descriptor, open(path, "rb").read().strip() + b"\n")
            seen = b""
            break
    return b"\n"


devnull = os.open(os.devnull, os.O_WRONLY)
out = os.dup(1)
os.dup2(devnull, 1)
status = pty.spawn(
    ["softhsm2-util", "--init-token", "--free", "--label", label], read, lambda descriptor: b""
)
os.dup2(out, 1)
sys.exit(os.waitstatus_to_exitcode(status))
PY
    say "token $label in $folder: made"
fi

# In single quotes, for folders with spaces.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }
printf 'export SOFTHSM2_CONF=%s\n' "$(quoted "$SOFTHSM2_CONF")"
printf 'export PKCS11_MODULE=%s\n' "$(quoted "$module")"
