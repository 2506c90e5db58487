#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:11:12
#SBATCH --job-name=01_assemble.r.0a1b2c
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=RUNS/r/jobs/01_assemble/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=240

# setup
echo '$ cd PROJECT && PYTHON PROJECT/stages/01_assemble.py --config-dir RUNS/r/jobs --config-name 01_assemble.frozen'
cd PROJECT || exit 1
export OMP_NUM_THREADS=8
export HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false
export NCCL_DEBUG=WARN
export VLM_VERDICT=RUNS/r/jobs/01_assemble/${SLURM_JOB_ID}_verdict.txt
rm -f "$VLM_VERDICT"
trap : TERM  # so that this script outlives the ranks and can put the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUNS/r/jobs/01_assemble/%j_%t_log.out --kill-on-bad-exit=1 --wait=0 --cpus-per-task=8 bash -c 'trap '"'"''"'"' USR2; exec PYTHON -u PROJECT/stages/01_assemble.py --config-dir RUNS/r/jobs --config-name 01_assemble.frozen'


# teardown
status=$?
PYTHON -m vlm.pipeline.requeue RUNS/r/jobs/01_assemble/${SLURM_JOB_ID}_legs.jsonl RUNS/r/01_assemble $status --max-requeues=100 --max-failures=3 --max-idle-failures=1 --retry-seconds=60
exit $status
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:11:12
#SBATCH --gpus-per-node=4
#SBATCH --job-name=03_pretrain.r.0a1b2c
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=RUNS/r/jobs/03_pretrain/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
echo '$ cd PROJECT && PYTHON -m torch.distributed.run --nproc-per-node 4 PROJECT/stages/03_pretrain.py --config-dir RUNS/r/jobs --config-name 03_pretrain.frozen'
cd PROJECT || exit 1
export OMP_NUM_THREADS=8
export HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false
export NCCL_DEBUG=WARN
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0} * 1009) % 12000))
export VLM_VERDICT=RUNS/r/jobs/03_pretrain/${SLURM_JOB_ID}_verdict.txt
rm -f "$VLM_VERDICT"
trap : TERM  # so that this script outlives the ranks and can put the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUNS/r/jobs/03_pretrain/%j_%t_log.out --kill-on-bad-exit=1 --wait=0 --cpus-per-task=8 bash -c 'trap '"'"''"'"' USR2; export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec PYTHON -u PROJECT/stages/03_pretrain.py --config-dir RUNS/r/jobs --config-name 03_pretrain.frozen'


# teardown
status=$?
PYTHON -m vlm.pipeline.requeue RUNS/r/jobs/03_pretrain/${SLURM_JOB_ID}_legs.jsonl RUNS/r/03_pretrain $status --max-requeues=100 --max-failures=3 --max-idle-failures=1 --retry-seconds=60
exit $status
#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:11:12
#SBATCH --job-name=02_shard.r.0a1b2c.shares
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=RUNS/r/jobs/02_shard/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=240

# setup
echo '$ cd PROJECT && PYTHON PROJECT/stages/02_shard.py --config-dir RUNS/r/jobs --config-name 02_shard.frozen' "part=$SLURM_ARRAY_TASK_ID/8"
cd PROJECT || exit 1
export OMP_NUM_THREADS=8
export HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false
export NCCL_DEBUG=WARN
export VLM_VERDICT=RUNS/r/jobs/02_shard/${SLURM_JOB_ID}_verdict.txt
rm -f "$VLM_VERDICT"
trap : TERM  # so that this script outlives the ranks and can put the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUNS/r/jobs/02_shard/%A_%a_%t_log.out --kill-on-bad-exit=1 --wait=0 --cpus-per-task=8 bash -c 'trap '"'"''"'"' USR2; exec PYTHON -u PROJECT/stages/02_shard.py --config-dir RUNS/r/jobs --config-name 02_shard.frozen part=$SLURM_ARRAY_TASK_ID/8'


# teardown
status=$?
PYTHON -m vlm.pipeline.requeue RUNS/r/jobs/02_shard/${SLURM_JOB_ID}_legs.jsonl RUNS/r/02_shard $status --max-requeues=100 --max-failures=3 --max-idle-failures=1 --retry-seconds=60
exit $status