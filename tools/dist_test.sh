#!/usr/bin/env bash
# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
set -euo pipefail

if [ $# -lt 3 ]; then
    cat >&2 <<'HELP'
usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]

Evaluate with GPUS processes on this node, one per GPU. The environment
variables are those of dist_train.sh.
HELP
    exit 2
fi

CONFIG=$1
CHECKPOINT=$2
GPUS=$3
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In a source tree mmsemi need not be installed.
if [ -f "$TOOLS/../mmsemi/__init__.py" ]; then
    export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
fi

# shellcheck disable=SC2086
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$GPUS" \
    ${TORCHRUN_ARGS:-} \
    "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
