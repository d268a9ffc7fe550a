#!/bin/bash

# Parameters
#SBATCH --account=project-7
#SBATCH --chdir='/srv/my runs/dolly/code'
#SBATCH --comment='it'"'"'s "mine"'
#SBATCH --constraint='a100&nvlink'
#SBATCH --cpus-per-task=16
#SBATCH --dependency=afterok:17
#SBATCH --error='/srv/my runs/dolly/submit/%j_0_log.err'
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:2
#SBATCH --job-name=dolly
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=END,FAIL
#SBATCH --mem=512512M
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output='/srv/my runs/dolly/submit/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=3600

# setup
module load cuda/12.8
export NCCL_DEBUG=INFO

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/srv/my runs/dolly/submit/%j_%t_log.out' --error '/srv/my runs/dolly/submit/%j_%t_log.err' --kill-on-bad-exit=1 '--container-image=docker://registry.example.org#team/train:1' '--container-mounts=/scratch/my data:/data' '/opt/my venv/bin/python' -u -m submitit.core._submit '/srv/my runs/dolly/submit'
