#!/usr/bin/env bash
# Sets up everything that memvit_mm needs; see --help. quickstart.sh and run_tests.sh
# source this file and call setup_env, which leaves the interpreter in $PY and the
# arguments that it does not know in $REST.

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
STEPS=6
# Threads that wait for each other should not spin: on a busy machine that makes a step
# of the demo model 3 times slower.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
TORCH_NEWEST='torch==2.13.0' # the newest one that the tests run on
MMCV='mmcv==2.1.0'           # the newest one that MMAction2 1.2.0 admits
OPENMMLAB=('mmengine>=0.10.3,<1.0.0' 'mmdet>=3.1.0,<3.4.0' 'mmaction2==1.2.0')
# What these four import, minus OpenCV: they ask for opencv-python and
# opencv-contrib-python, which overwrite each other's files, so pip gets --no-deps for
# them and we install one OpenCV.
LIBRARIES=(addict einops matplotlib packaging Pillow pycocotools pytest pyyaml rich
    scipy shapely six termcolor terminaltables tqdm yapf)

setup_usage() {
    cat <<'USAGE'
Usage: bash tools/setup_env.sh [OPTIONS]

Makes a virtual environment in .venv and installs torch, mmcv with its compiled ops
(about 8 minutes on 2 cores, once), mmengine, mmdet, MMAction2 and memvit_mm into it.
A second run takes seconds.

  --no-venv        use the active environment; a torch >= 2.1 or mmcv that is there is
                   kept (or: MEMVIT_VENV=none)
  --venv DIR       make the environment in DIR instead of .venv (or: MEMVIT_VENV=DIR)
  --python PYTHON  make the environment from this interpreter (or: MEMVIT_PYTHON=...)
  --copy           install memvit_mm as a copy, not as a link to this checkout
  -h, --help       show this

Environment:
  MEMVIT_TORCH     what to ask pip for if there is no torch, such as 'torch==2.5.1'
  MEMVIT_CPU_OPS=1 compile mmcv's ops for the CPU only, on a machine with a GPU
  MAX_JOBS         compiler processes (one per core if unset)
  PIP_INDEX_URL    and pip's other variables work as always
USAGE
}

step() { echo "[$1/$STEPS] ${*:2}"; }

die() {
    [ -s "${LOG:-}" ] || rm -f "${LOG:-}"
    echo "Error: $*" >&2
    exit 1
}

setup_env() {
    local install=editable active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
    VENV="${MEMVIT_VENV:-$REPO/.venv}" BASE_PYTHON="${MEMVIT_PYTHON:-}" REST=()
    while [ $# -gt 0 ]; do
        case "$1" in
        --no-venv) VENV=none ;;
        --venv) VENV="${2:?--venv needs a folder}" && shift ;;
        --python) BASE_PYTHON="${2:?--python needs an interpreter}" && shift ;;
        --copy) install=copy ;;
        -h | --help) setup_usage && exit 0 ;;
        *) REST+=("$1") ;;
        esac
        shift
    done
    SECONDS=0
    LOG="$(mktemp "${TMPDIR:-/tmp}/memvit_setup.XXXXXX")" ||
        die "No file can be made in ${TMPDIR:-/tmp}: free some disk space or set TMPDIR."
    # pip must neither ask nor try for minutes.
    export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_RETRIES="${PIP_RETRIES:-2}"
    unset PYTHONPATH

    find_python "$active"
    make_environment
    install_torch
    install_libraries
    install_openmmlab
    install_mmcv
    install_package "$install"
    rm -f "$LOG"
    echo "Set up in $SECONDS s: $PY"
}

# --- the interpreter ------------------------------------------------------------------

python_is_good() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ "$VENV" = none ]; then
        BASE_PYTHON="${BASE_PYTHON:-python}"
        command -v "$BASE_PYTHON" >/dev/null || BASE_PYTHON=python3
    elif [ -x "$VENV/bin/python" ]; then
        BASE_PYTHON="$VENV/bin/python"
    fi
    if [ -n "$BASE_PYTHON" ]; then
        command -v "$BASE_PYTHON" >/dev/null ||
            die "There is no Python at $BASE_PYTHON: name an existing one with --python."
        python_is_good "$BASE_PYTHON" ||
            die "$BASE_PYTHON is $("$BASE_PYTHON" --version 2>&1), but 3.9 or newer is" \
                "needed: name a newer one with --python, or remove an older .venv."
        return
    fi
    for candidate in python3 python python3.{13,12,11,10,9}; do
        if command -v "$candidate" >/dev/null && python_is_good "$candidate"; then
            BASE_PYTHON="$(command -v "$candidate")"
            return
        fi
    done
    die "No Python 3.9 or newer was found: install one (for example the packages" \
        "python3, python3-venv and python3-dev), or name it with --python."
}

# --- the environment ------------------------------------------------------------------

make_environment() {
    if [ "$VENV" = none ]; then
        PY="$BASE_PYTHON"
        step 1 "Using the active environment: $("$PY" --version 2>&1)," \
            "$("$PY" -c 'import sys; print(sys.prefix)')"
        "$PY" -m pip --version >/dev/null 2>&1 ||
            die "$PY has no pip: run '$PY -m ensurepip', or leave out --no-venv."
    else
        PY="$VENV/bin/python"
        step 1 "$("$BASE_PYTHON" --version 2>&1) in $VENV"
        if ! "$PY" -m pip --version >/dev/null 2>&1; then
            mkdir -p "$(dirname "$VENV")"
            need_space "$(dirname "$VENV")"
            "$BASE_PYTHON" -m venv "$VENV" >"$LOG" 2>&1 ||
                die "$BASE_PYTHON cannot make a virtual environment ($(last_error)):" \
                    "install its venv package (python3-venv), or use --no-venv."
        fi
        PY="$(cd "$VENV/bin" && pwd)/python"
    fi
    if has_ops; then
        OPS=there
    else
        # Where pip puts things, wheels are unpacked and mmcv is compiled.
        need_space "$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
        need_space "${TMPDIR:-/tmp}"
    fi
}

need_space() {
    local need="${MEMVIT_MIN_FREE_GB:-4}" free
    free=$(df -Pk "$1" 2>/dev/null | awk 'NR == 2 {print int($4 / 1048576)}')
    [ "${free:-$need}" -ge "$need" ] ||
        die "Only $free GB are free in $1, and $need GB are needed: free some space, or" \
            "choose another place with --venv (and TMPDIR for temporary files)."
}

# --- torch ----------------------------------------------------------------------------

install_torch() {
    local wanted="${MEMVIT_TORCH:-$TORCH_NEWEST}" version
    version="$(version_of torch)"
    if [ -z "$version" ]; then
        step 2 "torch: downloading and installing $wanted (a minute or more)"
        if ! try_pip "$wanted"; then
            # Python 3.9, for one, gets older versions only.
            if [ -n "${MEMVIT_TORCH:-}" ] || ! grep -q 'from versions: .*[0-9]' "$LOG"; then
                pip_failed "$wanted"
            fi
            echo "      $wanted is not there for this Python: taking the newest one"
            pip_install 'torch>=2.1'
        fi
        version="$(version_of torch)"
    else
        step 2 "torch $version is there"
    fi
    at_least "$version" 2.1 ||
        die "torch $version is too old: update it to 2.1 or newer in $(environment)," \
            "or leave out --no-venv."
    NUMPY=numpy
    # Builds up to 2.2 only work with numpy 1.
    at_least "$version" 2.3 || NUMPY='numpy<2'
}

# --- libraries ------------------------------------------------------------------------

install_libraries() {
    step 3 "Libraries"
    pip_install "$NUMPY" "${LIBRARIES[@]}"
    # With numpy, or pip would take the newest OpenCV and numpy 2 for it.
    "$PY" -c 'import cv2' 2>/dev/null || pip_install "$NUMPY" opencv-python-headless
    if [ -z "$(version_of decord)$(version_of eva-decord)" ] && ! try_pip "$NUMPY" decord; then
        grep -q 'from versions: none' "$LOG" || pip_failed decord
        echo "      decord has no build for this machine: videos are read by OpenCV"
    fi
}

# --- OpenMMLab ------------------------------------------------------------------------

install_openmmlab() {
    step 4 "mmengine, mmdet, MMAction2"
    # Not ours to change what is there: memvit_mm says on import what does not fit.
    pip_install --no-deps "${OPENMMLAB[@]}"
}

# --- mmcv with its ops ----------------------------------------------------------------

has_ops() {
    "$PY" -c 'from mmcv.ops import RoIAlign' >/dev/null 2>&1
}

OPS= # 'there' once they were found

install_mmcv() {
    local version
    version="$(version_of mmcv)"
    if [ "$OPS" = there ]; then
        step 5 "mmcv $version with its ops is there"
        return
    fi
    if [ "$VENV" = none ] && [ -n "$version" ]; then
        die "mmcv $version in $(environment) has no compiled ops that work with its" \
            "torch: run '$PY -m pip uninstall mmcv' and this again, which compiles them."
    fi
    need_compiler
    step 5 "mmcv: compiling its ops (about 15 minutes of processor time, once)"
    # Its setup.py imports pkg_resources, torch and psutil.
    pip_install 'setuptools>=64,<81' wheel ninja psutil
    compile_mmcv
    if ! has_ops; then
        # pip had a wheel in its cache that was built without ops or for another torch.
        echo "      the wheel in pip's cache does not fit this torch: compiling anew"
        compile_mmcv --no-cache-dir --force-reinstall
    fi
    has_ops ||
        die "mmcv was installed without working ops" \
            "($("$PY" -c 'from mmcv.ops import RoIAlign' 2>&1 | tail -n 1)): see $LOG."
}

need_compiler() {
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
        die "There is no C++ compiler, which mmcv's ops need: install g++ (the packages" \
            "g++ or build-essential) or set CXX."
    [ -e "$("$PY" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        die "Python.h is missing, which mmcv's ops need: install the development files" \
            "of $("$PY" --version) (the package python3-dev)."
    if [ "${MEMVIT_CPU_OPS:-0}" = 1 ]; then
        export CUDA_VISIBLE_DEVICES=''
    elif "$PY" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null &&
        ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
        die "There is a GPU but no CUDA compiler (nvcc), which mmcv's ops need: install" \
            "the CUDA toolkit $("$PY" -c 'import torch; print(torch.version.cuda)')," \
            "or set MEMVIT_CPU_OPS=1 to do without mmcv's ops on the GPU."
    fi
}

compile_mmcv() {
    local start=$SECONDS every=60 shown=0 pid
    [ -t 1 ] && every=1
    : >"$LOG"
    # A session of its own, so that Ctrl-C ends the compilers as well.
    MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" setsid "$PY" -m pip install -v \
        --no-deps --no-build-isolation "$@" "$MMCV" </dev/null >"$LOG" 2>&1 &
    pid=$!
    # shellcheck disable=SC2064
    trap "kill -- -$pid 2>/dev/null" EXIT
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if [ $((SECONDS - start - shown)) -ge "$every" ]; then
            shown=$((SECONDS - start))
            progress "$shown"
        fi
    done
    [ -t 1 ] && echo
    trap - EXIT
    wait "$pid" || pip_failed "$MMCV"
    echo "      done in $((SECONDS - start)) s"
}

progress() {
    local files end='\n'
    [ -t 1 ] && end='\r'
    files="$(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$LOG" | tail -n 1 | tr -d ' []' || true)"
    printf "      %d:%02d min%s$end" $(($1 / 60)) $(($1 % 60)) "${files:+, file $files}"
}

# --- this package ---------------------------------------------------------------------

install_package() {
    local mode=()
    if [ "$1" = editable ]; then
        mode=(--editable)
    else
        mode=(--force-reinstall)
    fi
    step 6 "memvit_mm ($1)"
    if [ "$1" = editable ] && is_linked; then
        return
    fi
    if ! "$PY" -c 'import setuptools, wheel' 2>/dev/null; then
        pip_install 'setuptools>=64' wheel
    fi
    try_pip --no-deps --no-build-isolation "${mode[@]}" "$REPO" || pip_failed "$REPO"
    (cd / && "$PY" -c 'import memvit_mm') >"$LOG" 2>&1 ||
        die "memvit_mm was installed but cannot be imported ($(tail -n 1 "$LOG"))."
}

is_linked() {
    (cd / && "$PY" - "$REPO" 2>/dev/null) <<'PYTHON'
import json
import sys
from importlib.metadata import distribution

record = json.loads(distribution('memvit_mm').read_text('direct_url.json'))
editable = record.get('dir_info', {}).get('editable', False)
sys.exit(not (editable and record['url'] == f'file://{sys.argv[1]}'))
PYTHON
}

# --- pip and versions -----------------------------------------------------------------

version_of() {
    "$PY" - "$1" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    print(version(sys.argv[1]))
except PackageNotFoundError:
    pass
PYTHON
}

at_least() { [ "$(printf '%s\n' "$2" "${1%%+*}" | sort -V | head -n 1)" = "$2" ]; }

environment() { "$PY" -c 'import sys; print(sys.prefix)'; }

try_pip() { "$PY" -m pip install "$@" </dev/null >"$LOG" 2>&1; }

pip_install() { have "$@" || try_pip "$@" || pip_failed "${*: -1}"; }

have() { # whether every requirement is met; pip needs a second or two to say so
    "$PY" - "$@" >/dev/null 2>&1 <<'PYTHON'
import sys
from importlib.metadata import version

from pip._vendor.packaging.requirements import Requirement

options = ('--no-deps',)
wanted = [Requirement(text) for text in sys.argv[1:] if text not in options]
sys.exit(not all(item.specifier.contains(version(item.name)) for item in wanted))
PYTHON
}

last_error() { grep -iE 'error' "$LOG" | tail -n 1 | sed 's/^ *//' | cut -c 1-200; }

pip_failed() {
    if grep -qiE 'No space left|Errno 28|Disk quota' "$LOG"; then
        die "The disk became full while installing $1: free some space (pip's cache:" \
            "'pip cache purge') and run this again."
    elif grep -qiE 'Retrying \(|ConnectionError|ConnectTimeout|NameResolution|ProxyError|SSLError|HTTP error|Errno 101|Max retries' "$LOG" ||
        [ -n "${PIP_NO_INDEX:-}" ]; then
        die "The package index cannot be reached for $1: check the network, the proxy" \
            "and pip's settings ('pip config list', PIP_INDEX_URL, PIP_NO_INDEX)."
    elif grep -q 'from versions: none' "$LOG"; then
        die "The package index cannot be reached for $1, or has none for this Python" \
            "($("$PY" --version)): check the network and pip's settings, or name another" \
            "interpreter with --python."
    fi
    die "pip could not install $1 ($(last_error)): the whole log is in $LOG."
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    setup_env "$@"
    [ ${#REST[@]} -eq 0 ] || die "There is no option ${REST[0]}: see --help."
fi
