#!/bin/bash
#PBS -N edgexnas
#PBS -l select=2:ncpus=64:ngpus=4
#PBS -l walltime=08:00:00
#
#     qsub -v CONFIGURATION=host/bragg.toml,TIMEOUT=28500 host/pbs.sh
#
# TIMEOUT is the walltime in seconds less five minutes. Submit it again to continue: what was
# evaluated is kept. ENVIRONMENT is a script that activates the environment that has
# edgexnas[host] and ray; it must be the same on every node.
set -euo pipefail
cd "$PBS_O_WORKDIR"
environment=${ENVIRONMENT:-/dev/null}
source "$environment"

mapfile -t nodes < <(sort -u "$PBS_NODEFILE")
workers=${WORKERS:-$((${#nodes[@]} * 4))}
head=$(hostname -s)
export RAY_ADDRESS="$head:6379"
# Without a token anybody on the network could run code on the nodes.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

ray start --head --port=6379 --include-dashboard=false --block &
until ray status >/dev/null 2>&1; do sleep 2; done
for node in "${nodes[@]}"; do
    # With a terminal, the end of the connection ends what runs in it.
    [[ $node == "$head"* ]] || ssh -tt "$node" \
        "cd '$PWD' && source '$environment' && RAY_AUTH_MODE=token ray start --address='$RAY_ADDRESS' --block" &
done
until (($(ray status | grep -c ' node_') >= ${#nodes[@]})); do sleep 2; done

edgexnas optimize --config "$CONFIGURATION" --evaluator ray --workers "$workers" \
    --timeout "$TIMEOUT" --resume
