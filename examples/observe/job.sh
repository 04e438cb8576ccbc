#!/bin/bash
#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --gres=gpu:2
#SBATCH --time=10
#SBATCH --output=train.out

# No option of Piolet's but the environment: what the page shows was recorded by the nodes.
srun --environment=./environment.toml python3 observed.py
# The loss, from the lines that the program prints.
piolet mark --job "$SLURM_JOB_ID"
