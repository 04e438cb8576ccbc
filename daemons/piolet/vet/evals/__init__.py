"""The evals of the catalogue, one file each."""
