#!/bin/bash
# Copyright (c) 2026, llamafleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Bring Debian's HIP compiler and libraries, with all that they need beyond the base system, into the folder $1. Runs in
# a container of the stand-in's image, whose apt lies out of the way of hosts.
set -euo pipefail
export PATH=/opt/llamafleet-test/debian:$PATH
mkdir -p "$1" && cd "$1"
apt=(apt-get -q -y --no-install-recommends -o APT::Sandbox::User=root -o "Dir::Bin::dpkg=/opt/llamafleet-test/debian/dpkg")
"${apt[@]}" update
# librocblas4 is 280 MB of kernels, which only a program that runs would load.
"${apt[@]}" --print-uris install hipcc libhipblas-dev librocblas-dev | sed -n "s/^'[^']*' \([^ ]*\) [0-9]* .*/\1/p" \
    | grep -v '^librocblas4_' | sort >wanted
for old in *.deb; do grep -qxF "$old" wanted || rm -f "$old"; done
missing=()
while read -r file; do [ -e "$file" ] || missing+=("${file%%_*}"); done <wanted
if [ ${#missing[@]} -gt 0 ]; then "${apt[@]}" download "${missing[@]}"; fi
