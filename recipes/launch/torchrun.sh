#!/usr/bin/env bash
# Starts one node of a run by torchrun. Run the same line on every node, each with its own NODE_RANK:
#
#   NUM_NODES=4 NODE_RANK=0 MASTER_ADDR=node0 recipes/launch/torchrun.sh \
#       recipe=sft_rl_7b model=DIR output_dir=/shared/run
#
# Rendezvous   All nodes meet at MASTER_ADDR:MASTER_PORT, where node 0 listens; the port must be open between nodes.
#              The run starts when the last node has come. The nodes need the same code and packages.
# Folders      output_dir is one folder that all nodes share: rank 0 writes metrics, reports and weights, every rank writes
#              its own part of a checkpoint, and a run with separate folders is refused. model, data files and videos lie
#              under the same paths for all nodes; the folder of VIDEOSEEK_CACHE may be each node's own.
# Network      NCCL_SOCKET_IFNAME names the interface between the nodes, if NCCL chooses another one.
set -euo pipefail

: "${NUM_NODES:?number of nodes}" "${NODE_RANK:?number of this node, from 0}" "${MASTER_ADDR:?host name of node 0}"

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$NUM_NODES" \
    --node_rank "$NODE_RANK" \
    --nproc_per_node "${PROCESSES_PER_NODE:-gpu}" \
    --master_addr "$MASTER_ADDR" \
    --master_port "${MASTER_PORT:-29500}" \
    -m videoseek.train "$@"
