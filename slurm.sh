#!/bin/bash
# A sweep on a Slurm cluster: Ray on all nodes of one allocation, the command on the first.
#
#   sbatch slurm.sh sweep --config sweep.yaml --run /shared/runs/first
#   sbatch --nodes=8 slurm.sh train --config train.yaml --workers 8 --min_workers 4 --run /shared/runs/net
#
# Two minutes before the time is up Slurm sends SIGTERM: what runs may end, and the job is queued again and goes on from the
# run. Adjust the lines below, and those that load your environment.
#SBATCH --job-name=shiftlab
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

source "${SHIFTLAB_ENVIRONMENT:-$HOME/venv/bin/activate}"

# A token of its own for each job: without it, whoever reaches a port could run code as you.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
# A lost node is noticed within seconds, not half a minute.
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=5

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a machine
workers=$((${#nodes[@]} * SLURM_CPUS_PER_TASK))

srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 \
  --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats &
until ray health-check --address "$address:$port" >/dev/null 2>&1; do sleep 1; done
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" \
    ray start --block --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats &
done

# In the background, so that this shell hears SIGTERM and can pass it on.
shiftlab "$1" --address "$address:$port" --workers "$workers" "${@:2}" &
command=$!
stopped=0
trap 'stopped=1; kill -TERM "$command"' TERM
code=0
wait "$command" || code=$?
if ((stopped)); then # that wait was ended by the signal: the command drains
  code=0
  wait "$command" || code=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
kill $(jobs -p) 2>/dev/null || true
exit "$code"
