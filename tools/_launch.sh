# How dist_train.sh, dist_test.sh, slurm_train.sh and slurm_test.sh start processes.

# dist TOOL.py "NAMES OF ITS ARGUMENTS" ARGUMENTS... GPUS [OPTIONS]
dist() {
    local tool=$1 names=$2 count
    count=$(wc -w <<<"$names")
    shift 2
    if [ $# -le "$count" ]; then
        echo "Usage: bash $0 $names GPUS [OPTIONS OF $tool]" >&2
        exit 2
    fi
    local arguments=("${@:1:count}")
    shift "$count"
    local gpus=$1
    shift
    if ! [[ $gpus =~ ^([1-9][0-9]*|auto|gpu|cpu)$ ]]; then
        echo "Error: GPUS is '$gpus', expected a number, as in bash $0 $names 8." >&2
        exit 2
    fi
    if [ "${NNODES:-1}" != 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
        echo "NNODES=$NNODES without MASTER_ADDR: the first of them is taken to be this machine." >&2
    fi
    # One thread per process unless the user says otherwise, as torchrun does.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node-rank="${NODE_RANK:-0}" \
        --master-addr="${MASTER_ADDR:-127.0.0.1}" \
        --master-port="${PORT:-29500}" \
        --nproc-per-node="$gpus" \
        "$(dirname "$0")/$tool" "${arguments[@]}" --launcher pytorch "$@"
}

# slurm TOOL.py "NAMES OF ITS ARGUMENTS" PARTITION JOB_NAME ARGUMENTS... [OPTIONS]
slurm() {
    local tool=$1 names=$2 count
    count=$(wc -w <<<"$names")
    shift 2
    if [ $# -lt $((count + 2)) ]; then
        echo "Usage: GPUS=8 bash $0 PARTITION JOB_NAME $names [OPTIONS OF $tool]" >&2
        exit 2
    fi
    local partition=$1 job_name=$2
    shift 2
    export MASTER_PORT=${MASTER_PORT:-$((12000 + RANDOM % 20000))}
    # SRUN_ARGS is a list of words on purpose.
    # shellcheck disable=SC2086
    exec srun --partition="$partition" \
        --job-name="$job_name" \
        --gres=gpu:"${GPUS_PER_NODE:-8}" \
        --ntasks="${GPUS:-8}" \
        --ntasks-per-node="${GPUS_PER_NODE:-8}" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$(dirname "$0")/$tool" "$@" --launcher slurm
}
