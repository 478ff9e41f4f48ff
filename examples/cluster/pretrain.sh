#!/usr/bin/env bash
# Pre-trains on all GPUs of one machine: bash examples/cluster/pretrain.sh
# On several machines without a scheduler, start it on each one with NNODES=4 and HEAD_NODE, the name of the first one.
set -euo pipefail

torchrun --nnodes "${NNODES:-1}" --nproc_per_node gpu --max_restarts 3 \
    --rdzv_id blip --rdzv_backend c10d --rdzv_endpoint "${HEAD_NODE:-localhost}:29500" \
    -m blip_hf pretrain --vision facebook/deit-base-patch16-224 --text bert-base-uncased \
    --data /data/clean /data/human.json --bf16 True --per_device_train_batch_size 60 --output_dir /data/blip
