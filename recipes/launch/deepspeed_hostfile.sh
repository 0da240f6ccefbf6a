#!/usr/bin/env bash
# Starts all nodes of a run from one of them by DeepSpeed's launcher, which needs ssh without a password (and pdsh):
#
#   HOSTFILE=hosts recipes/launch/deepspeed_hostfile.sh recipe=sft_rl_7b model=DIR output_dir=/shared/run
#
# Hosts        HOSTFILE holds a line for each node, the host name and its number of GPUs: `node0 slots=8`.
# Rendezvous   The first host of the file, or MASTER_ADDR, at MASTER_PORT.
# Folders      As in torchrun.sh: output_dir, model, data files and videos under the same paths for all nodes. The
#              launcher starts in the present folder on every node, so the nodes share it too.
# Environment  The launcher hands on variables that begin with NCCL, PYTHON or similar, and those that a file
#              .deepspeed_env in the present or home folder sets, such as `WANDB_MODE=online`.
set -euo pipefail

: "${HOSTFILE:?file with a line such as 'node0 slots=8' for each node}"

exec "${DEEPSPEED:-deepspeed}" \
    --hostfile "$HOSTFILE" \
    ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} \
    --master_port "${MASTER_PORT:-29500}" \
    --module videoseek.train "$@"
