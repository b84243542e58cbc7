#!/usr/bin/env bash
# Sets up, installs memvit_mm as users get it, and tests the installed package:
#   bash tools/run_tests.sh [OPTIONS OF setup_env.sh] [OPTIONS OF pytest]
# For instance: bash tools/run_tests.sh -k sampler
# As root on Debian it installs Chromium, unless there is one: tests open reports in it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

EXTRA='[tests]' MORE_OPTIONS=yes setup_env --copy "$@"
cd "$REPO"
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    echo 'Installing Chromium (tests that open reports are skipped without it)'
    # Unlike Playwright's own, Debian's comes with the libraries that it needs.
    { apt-get update && apt-get install -y --no-install-recommends chromium; } \
        >/dev/null 2>&1 </dev/null || echo 'It cannot be installed here.'
fi
# Not `python -m pytest`, which would put the checkout first in sys.path; the tests
# check that memvit_mm is the installed one (tests/conftest.py).
export MEMVIT_TEST_INSTALLED=1
# Two files at a time; with -n 0 one after the other.
PATH="$(dirname "$PY"):$PATH" exec "$PY" -c '
import sys

sys.path = [path for path in sys.path if path]
import pytest

sys.exit(pytest.main(sys.argv[1:]))
' -q --durations=15 -n 2 --dist loadfile --no-loadscope-reorder "${REST[@]+"${REST[@]}"}"
