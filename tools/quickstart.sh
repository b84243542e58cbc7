#!/usr/bin/env bash
# Sets up, makes a small set of videos, trains the demo model and its twin without
# memory, tests both and shows what memory is good for:
#   bash tools/quickstart.sh [OPTIONS OF setup_env.sh]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env "$@"
[ ${#REST[@]} -eq 0 ] || die "There is no option ${REST[0]}: see --help."
cd "$REPO"

DATA=data/memvit_demo
OUTPUT=work_dirs/quickstart.log
SHOWN='' # lines of the output that are shown, as an awk pattern
mkdir -p work_dirs
: >"$OUTPUT"
# Ctrl-C ends the trainings too, which run in the background.
trap 'trap - INT TERM; kill 0' INT TERM

stage() { # stage NAME COMMAND...: run it, show its progress, say how long it took
    local start=$SECONDS
    printf '\n== %s\n' "$1"
    "${@:2}" 2>&1 | tee -a "$OUTPUT" | awk "$SHOWN"' {print; fflush()}' ||
        die "'${*:2}' failed: see the end of $OUTPUT."
    echo "== $1: $((SECONDS - start)) s"
}

checkpoint() { # the last one of a training run
    cat "work_dirs/$1/last_checkpoint" 2>/dev/null ||
        die "There is no checkpoint in work_dirs/$1: its training wrote none."
}

stage 'Demo data' "$PY" tools/make_demo_dataset.py "$DATA"
SHOWN='/Epoch\(|Error: /'

train() { # train NAME: on one core, its lines marked with its name
    local start=$SECONDS
    OMP_NUM_THREADS=1 "$PY" tools/train.py "configs/$1.py" --work-dir "work_dirs/$1" \
        2>&1 | awk -v name="$1" '{print name ": " $0; fflush()}' || return
    echo $((SECONDS - start)) >"work_dirs/$1/seconds"
}

train_both() { # the model and its twin side by side: two cores do both in one's time
    train memvit_demo &
    local first=$!
    train memvit_demo_no_memory &
    local second=$! failed=0
    wait "$first" || failed=1
    wait "$second" || failed=1
    return "$failed"
}

stage 'Training both models' train_both
for name in memvit_demo memvit_demo_no_memory; do
    CHECKPOINT="$(checkpoint "$name")"
    stage "Testing $name" "$PY" tools/test.py "configs/$name.py" "$CHECKPOINT" \
        --work-dir "work_dirs/$name/test"
done
stage 'Testing memvit_demo with its memory cleared before every clip' \
    "$PY" tools/test.py configs/memvit_demo.py "$(checkpoint memvit_demo)" \
    --work-dir work_dirs/memvit_demo/test_cleared \
    --cfg-options custom_hooks.0.every_clip=True

echo
"$PY" tools/plot_demo.py work_dirs/memvit_demo work_dirs/memvit_demo_no_memory \
    --seconds "$(<work_dirs/memvit_demo/seconds)" \
    "$(<work_dirs/memvit_demo_no_memory/seconds)" \
    --cleared work_dirs/memvit_demo/test_cleared --out work_dirs/memvit_demo.png
echo "Data: $REPO/$DATA; checkpoints, logs and results:" \
    "$REPO/work_dirs/memvit_demo and $REPO/work_dirs/memvit_demo_no_memory; everything" \
    "that was printed: $REPO/$OUTPUT"
