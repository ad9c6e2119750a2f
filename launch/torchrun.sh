#!/usr/bin/env bash
# Trains on one node, or on many without a scheduler: the same command on every node, started in any order.
#   one node:    launch/torchrun.sh --config configs/megadna-86m.yaml --data.path DATASET --output RUN
#   two nodes:   NODES=2 HEAD=10.0.0.1 NODE_RANK=0 launch/torchrun.sh --config ... --output RUN     (on 10.0.0.1)
#                NODES=2 HEAD=10.0.0.1 NODE_RANK=1 launch/torchrun.sh --config ... --output RUN     (on the other)
# The words after it go to `megadna train`. A rank that dies ends its step; torchrun then starts all ranks again, up to
# MAX_RESTARTS times, and `--resume auto` takes the newest checkpoint. SIGTERM to this script saves and stops.
set -euo pipefail

NODES=${NODES:-1}
RANKS=${RANKS:-auto}            # ranks on this node; auto: one per GPU, or per CPU core where there is no GPU
HEAD=${HEAD:-localhost}         # name or address of the node that keeps the rendezvous
PORT=${PORT:-29400}             # its port
NODE_RANK=${NODE_RANK:-}        # 0 on HEAD, others elsewhere; empty: found out by HEAD's name
LOCAL_ADDR=${LOCAL_ADDR:-}      # this node's address, where its host name does not resolve on the others
JOB_ID=${JOB_ID:-megadna}       # nodes that say the same meet
MAX_RESTARTS=${MAX_RESTARTS:-3} # per node
JOIN_SECONDS=${JOIN_SECONDS:-600} # a node waits so long for the others, at the start and after a failure
STOP_SECONDS=${STOP_SECONDS:-300} # after SIGTERM a rank may take so long to save

# NCCL. Each is read where set; the values here are defaults, not advice.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}        # INFO: which network, which ring; the first thing to read when it is slow
# export NCCL_SOCKET_IFNAME=eth0             # network card of the bootstrap (and of the data without InfiniBand)
# export NCCL_IB_HCA=mlx5                    # InfiniBand or RoCE cards to use, by prefix
# export NCCL_IB_DISABLE=1                   # take TCP; only to find out whether InfiniBand is at fault
# export GLOO_SOCKET_IFNAME=eth0             # the same for CPU ranks
# export TORCH_NCCL_TRACE_BUFFER_SIZE=2000   # flight recorder: what each rank waited for when a collective timed out
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} # tensor parallel's order of kernels on Hopper and older
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # a new store for each start: ranks must not look for those of the last one

# Many nodes: a new store at each restart. In one that is kept, ranks would look for others at the addresses of dead ones.
if ((NODES > 1)); then
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi

conf=join_timeout=$JOIN_SECONDS
if [[ -n $NODE_RANK ]]; then
    [[ $NODE_RANK == 0 ]] && conf+=,is_host=1 || conf+=,is_host=0
fi
options=(--nnodes "$NODES" --nproc-per-node "$RANKS" --max-restarts "$MAX_RESTARTS" --rdzv-id "$JOB_ID")
options+=(--rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-conf "$conf")
[[ -z $LOCAL_ADDR ]] || options+=(--local-addr "$LOCAL_ADDR")
torchrun "${options[@]}" -m megadna train --resume auto "$@" &
agent=$!

# torchrun would pass SIGTERM on to all processes of a rank, its loader's workers too, and the step in progress would fail.
stop() {
    read -r -a ranks < <(cat "/proc/$agent/task/$agent/children" 2>/dev/null) || true
    for rank in "${ranks[@]}"; do kill -TERM "$rank" 2>/dev/null || true; done
    for rank in "${ranks[@]}"; do
        for ((i = 0; i < STOP_SECONDS * 5; i++)); do
            [[ $(cut -d ' ' -f 3 "/proc/$rank/stat" 2>/dev/null || echo Z) != Z ]] || break
            sleep 0.2
        done
    done
    kill -TERM "$agent" 2>/dev/null || true
}
trap stop TERM
while kill -0 "$agent" 2>/dev/null; do wait "$agent" || true; done # a signal interrupts `wait`
wait "$agent"
