#!/usr/bin/env bash
# Debian's Chromium with its driver, where they are missing (root or sudo): the tests of pages run in it.
set -euo pipefail
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit
root=""
[ "$(id -u)" = 0 ] || root=sudo
$root apt-get update -q
$root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium chromium-driver fonts-dejavu-core
