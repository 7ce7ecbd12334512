#!/bin/sh
# install_packages.sh [GROUP...]: installs the packages of these groups of tools/packages.txt
# (default: build) that are missing. Where none is missing it touches neither network nor root.
set -eu
list=$(dirname "$0")/packages.txt

missing=""
for group in "${@:-build}"; do
  for package in $(awk -v group="$group" '$1 == group { print $2 }' "$list"); do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || status=""
    [ "$status" = installed ] || missing="$missing $package"
  done
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "install_packages.sh: no apt-get here; install by hand what matches:$missing" >&2
  exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install_packages.sh: needs root or sudo to install:$missing" >&2
    exit 1
  fi
  as_root=sudo
fi
echo "Installing Debian packages:$missing"
# The words of $missing are separate arguments; an empty $as_root is none.
# shellcheck disable=SC2086
{
  $as_root apt-get update -q -q
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -q -y --no-install-recommends \
    -o Dpkg::Use-Pty=0 $missing >/dev/null
}
