#!/bin/bash

# Parameters
#SBATCH --chdir=/srv/runs/tiny-sample/code
#SBATCH --error=/srv/runs/tiny-sample/submit/%j_0_log.err
#SBATCH --job-name=tiny-sample
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/srv/runs/tiny-sample/submit/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=1440

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /srv/runs/tiny-sample/submit/%j_%t_log.out --error /srv/runs/tiny-sample/submit/%j_%t_log.err --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /srv/runs/tiny-sample/submit
