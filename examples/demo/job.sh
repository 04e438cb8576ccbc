#!/bin/bash
#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --time=5
#SBATCH --output=train.out

# The script runs on the host; the eight tasks run in the environment. Only what is mounted is there:
# the data, and the scratch directory with train.py, in which the tasks start (workdir).
srun --environment=./my_environment.toml python3 train.py
