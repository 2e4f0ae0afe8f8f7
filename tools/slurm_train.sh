#!/usr/bin/env bash
# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
set -euo pipefail

if [ $# -lt 4 ]; then
    cat >&2 <<'HELP'
usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]

Train under Slurm, one task per GPU. In the environment:
  GPUS           number of GPUs (8)
  GPUS_PER_NODE  of them on a node (8, or GPUS if that is less)
  CPUS_PER_TASK  processor cores per GPU (5)
  SRUN_ARGS      more options for srun
  PYTHON         the Python to use (python)
WORK_DIR must be on a file system that all nodes share.
HELP
    exit 2
fi

PARTITION=$1
JOB_NAME=$2
CONFIG=$3
WORK_DIR=$4
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In a source tree mmsemi need not be installed.
if [ -f "$TOOLS/../mmsemi/__init__.py" ]; then
    export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
fi

# shellcheck disable=SC2086
exec srun -p "$PARTITION" \
    --job-name="$JOB_NAME" \
    --gres="gpu:$GPUS_PER_NODE" \
    --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$TOOLS/train.py" "$CONFIG" \
    --work-dir "$WORK_DIR" --launcher slurm "${@:5}"
