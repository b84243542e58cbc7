#!/usr/bin/env bash
# Makes an environment with memvit_mm and all that it needs. What is installed is what
# setup.py declares: `pip install .` in an environment of your own does the same.
# quickstart.sh and run_tests.sh source this file and call setup_env.
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Threads that wait for each other should not spin: on a busy machine that makes a step of
# the demo model 3 times slower.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
setup_usage() {
    cat <<'USAGE'
Usage: bash tools/setup_env.sh [OPTIONS]

Installs memvit_mm and its dependencies into a virtual environment in .venv.

  --no-venv        use the active environment, and its torch from 2.4 on
  --venv DIR       make the environment in DIR instead of .venv
  --python PYTHON  make it with this interpreter, Python 3.9 or newer
  --copy           install memvit_mm as a copy, not as a link to this checkout
  --compile-ops    also compile mmcv's own operators (10 minutes on 2 cores): needs a C++
                   compiler, and on a machine with a GPU an nvcc of torch's CUDA version
  -h, --help       show this

MEMVIT_TORCH names the torch to install where there is none, such as 'torch==2.5.1'.
USAGE
}

die() { echo "Error: $*" >&2 && exit 1; }

# Leaves the interpreter in $PY and, with MORE_OPTIONS=yes, what it does not know in $REST.
# EXTRA is what setup.py has more to install, such as '[tests]'.
setup_env() {
    local venv="$REPO/.venv" python=python3 link=--editable torch='' compile=no
    REST=() SECONDS=0
    while [ $# -gt 0 ]; do
        case "$1" in
        --no-venv) venv='' ;;
        --venv) venv="${2:?--venv needs a folder}" && shift ;;
        --python) python="${2:?--python needs an interpreter}" && shift ;;
        --copy) link='' ;;
        --compile-ops) compile=yes ;;
        -h | --help) setup_usage && exit 0 ;;
        *) [ -n "${MORE_OPTIONS:-}" ] || die "There is no option $1: see --help."
            REST+=("$1") ;;
        esac
        shift
    done
    if [ -z "$venv" ]; then
        PY="$(command -v python || echo python3)"
    else
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv" ||
            die "$python cannot make a virtual environment in $venv: install its venv" \
                "package (python3-venv), or use --no-venv."
        PY="$(cd "$venv/bin" && pwd)/python"
    fi
    # The newest torch that the tests run on, unless one is there. It needs Python 3.10.
    "$PY" -c 'import torch' 2>/dev/null || torch="${MEMVIT_TORCH:-$("$PY" -c \
        'import sys; print("torch" + ("==2.13.0" if sys.version_info >= (3, 10) else ""))')}"
    echo "Installing memvit_mm and what it needs with $PY (a minute or two)"
    pip_install ${torch:+"$torch"} ${link:+"$link"} ".${EXTRA:-}" ||
        die 'pip cannot install memvit_mm: it says above what it lacks.'
    # mmengine and MMAction2 ask for OpenCV with windows, which needs libGL.
    "$PY" -c 'import cv2' 2>/dev/null ||
        pip_install --force-reinstall --no-deps opencv-python-headless ||
        die 'OpenCV cannot be loaded, and pip cannot install opencv-python-headless.'
    [ "$compile" = no ] || compile_ops
    (cd / && "$PY" -c 'import memvit_mm') || die 'memvit_mm cannot be imported.'
    echo "Set up in $SECONDS s: $PY"
}

pip_install() {
    (cd "$REPO" && "$PY" -m pip install --quiet --disable-pip-version-check "$@")
}

# Over mmcv-lite, whose files are the same. Its setup.py imports what is installed first.
compile_ops() {
    echo "Compiling mmcv's operators"
    pip_install 'setuptools<81' wheel ninja psutil && MMCV_WITH_OPS=1 pip_install \
        --no-build-isolation --no-deps --no-cache-dir --force-reinstall mmcv==2.1.0 ||
        die "mmcv's operators cannot be compiled: it says above what is missing."
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    setup_env "$@"
fi
