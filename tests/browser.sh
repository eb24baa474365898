#!/bin/sh
# Installs Chromium and its driver for the tests of the report, if that is possible without a question: on a system with
# apt, as root or with sudo that asks for no password. Otherwise these tests are skipped, and one line says so.

has_browser() {
    command -v chromedriver >/dev/null && { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null
}

has_browser && exit 0
if command -v apt-get >/dev/null; then
    if [ "$(id -u)" = 0 ]; then sudo=""; else sudo="sudo -n"; fi
    if $sudo true 2>/dev/null; then
        echo "installing chromium and chromium-driver for the tests of the report ..."
        install="env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver"
        $sudo $install >/dev/null 2>&1 || { $sudo apt-get update >/dev/null 2>&1 && $sudo $install >/dev/null 2>&1; }
    fi
fi
has_browser || echo "*** NO BROWSER: the report is NOT tested in a browser. Install chromium and chromium-driver. ***" >&2
