#!/usr/bin/env bash
# Sets up, then shows on a small set of drawn videos what memory is good for:
#   bash tools/quickstart.sh [OPTIONS OF setup_env.sh]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env "$@"
cd "$REPO" && exec "$PY" tools/quickstart.py
