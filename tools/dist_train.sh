#!/usr/bin/env bash
# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
set -euo pipefail

if [ $# -lt 2 ]; then
    cat >&2 <<'HELP'
usage: dist_train.sh CONFIG GPUS [options of train.py]

Train with GPUS processes on this node, one per GPU (without a GPU on the
CPU). With several nodes run it once on each, with these in the environment:
  NNODES       number of nodes (1)
  NODE_RANK    number of this node, from 0 (0)
  MASTER_ADDR  address of node 0 (127.0.0.1)
  PORT         a free port of node 0 (29500)
The work dir must be on a file system that all nodes share. Also:
  PYTHON         the Python to use (python)
  TORCHRUN_ARGS  more options for torchrun, such as "--max-restarts 3"
If a node is lost, the others end with an error: at once on the CPU, with
GPUs after env_cfg.dist_cfg.timeout seconds (by default 600). Then start all
nodes again with --resume.
HELP
    exit 2
fi

CONFIG=$1
GPUS=$2
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
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
