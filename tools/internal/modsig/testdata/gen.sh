#!/bin/sh
# Made module.signed with scripts/sign-file.c of Linux 6.1.192 and OpenSSL 3.0.22: a text, signed with
# the RSA key of keys-debug.
#   gen.sh LINUX      in this folder, with the source of Linux
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc -o "$work/sign-file" "$1/scripts/sign-file.c" -lcrypto
keys=../../../../keys-debug
echo 'a module' > "$work/module"
"$work/sign-file" sha256 $keys/ima-rsa.key $keys/ima-rsa.crt "$work/module" module.signed
