#!/usr/bin/env bash
# Sets up, installs memvit_mm as users get it, and tests the installed package:
#   bash tools/run_tests.sh [OPTIONS OF setup_env.sh] [OPTIONS OF pytest]
# For instance: bash tools/run_tests.sh -k sampler
# As root on Debian it installs Chromium, unless there is one: tests open reports in it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env --copy "$@"
cd "$REPO"
# Two files at a time where pytest-xdist can be had; with -n 0 one after the other.
PARALLEL=()
if "$PY" -c 'import xdist' 2>/dev/null ||
    "$PY" -m pip install --quiet pytest-xdist >/dev/null 2>&1; then
    PARALLEL=(-n 2 --dist loadfile --no-loadscope-reorder)
fi
# What opens reports in a browser; those tests are skipped where it cannot be had.
if ! "$PY" -c 'import playwright' 2>/dev/null &&
    ! "$PY" -m pip install --quiet playwright >/dev/null 2>&1; then
    echo '      playwright cannot be had: reports are not opened in a browser'
fi
has_browser() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
} >/dev/null
install_browser() { # unlike Playwright's own, Debian's comes with the libraries it needs
    [ "$(id -u)" = 0 ] && command -v apt-get && echo '      Installing Chromium' >&3 &&
        timeout 300 apt-get update &&
        DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y \
            --no-install-recommends chromium
} 3>&1 >/dev/null 2>&1 </dev/null
has_browser || install_browser ||
    echo '      Chromium cannot be had: reports are not opened in a browser'
# Not `python -m pytest`, which would put the checkout first in sys.path; the tests
# check that memvit_mm is the installed one (tests/conftest.py).
export MEMVIT_TEST_INSTALLED=1
PATH="$(dirname "$PY"):$PATH" exec "$PY" -c '
import sys

sys.path = [path for path in sys.path if path]
import pytest

sys.exit(pytest.main(sys.argv[1:]))
' -q --durations=15 "${PARALLEL[@]+"${PARALLEL[@]}"}" "${REST[@]+"${REST[@]}"}"
