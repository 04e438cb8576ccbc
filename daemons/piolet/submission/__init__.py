"""The record that srun's plugins take."""
