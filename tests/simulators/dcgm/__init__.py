"""A library that stands for NVIDIA's DCGM."""
