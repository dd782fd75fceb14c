#!/bin/bash
# Train on two machines of four GPUs each under Slurm; a job that is pre-empted goes on when it runs again.
# Not run where this project is tested; the same processes are, on the CPU.
#
#   sbatch examples/cluster/slurm.sh
#SBATCH --job-name=mobilevit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

out=runs/imagenet_xs
resume=()
[ -f "$out/checkpoints/last.ckpt" ] && resume=(--resume)
master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 4 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$master:29500" \
  -m mobilevit train --config recipes/imagenet_v1.yaml --model mobilevit_xs \
  --data.root /data/imagenet --out "$out" "${resume[@]}"
