#!/bin/bash
#SBATCH --job-name=edgexnas
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=08:00:00
#
#     sbatch host/slurm.sh host/bragg.toml
#
# Submit it again to continue: what was evaluated is kept. Activate the environment that has
# edgexnas[host] and ray below; it must be the same on every node.
set -euo pipefail

configuration=${1:?give the configuration: sbatch host/slurm.sh host/bragg.toml}
workers=${WORKERS:-$((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-${SLURM_CPUS_ON_NODE:-1}}))}
margin=300   # seconds before the end of the job at which the search stops by itself

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
export RAY_ADDRESS="$head:6379"
# Without a token anybody on the network could run code on the nodes.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port=6379 --include-dashboard=false --block &
until ray status >/dev/null 2>&1; do sleep 2; done
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --address="$RAY_ADDRESS" --block &
fi
until (($(ray status | grep -c ' node_') >= SLURM_JOB_NUM_NODES)); do sleep 2; done

edgexnas optimize --config "$configuration" --evaluator ray --workers "$workers" \
    --timeout $((SLURM_JOB_END_TIME - $(date +%s) - margin)) --resume
