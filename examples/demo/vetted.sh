#!/bin/bash
#SBATCH --job-name=vetted
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --gres=gpu:2
#SBATCH --time=5
#SBATCH --output=vetted.out

# Four nodes, and three to train on: the nodes are vetted first, and a bad one is left out with the reason.
# At the end: what the GPUs of the three did, and a report.
srun -N3 -n6 --vet=ml.yaml --score=html --environment=./my_environment.toml python3 train.py
