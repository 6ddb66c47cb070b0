// Copyright (c) 2026, llamafleet contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

extern "C" int devices();

extern "C" int devices_and_host() { return devices() + 1; }
