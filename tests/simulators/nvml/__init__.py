"""A library that stands for NVIDIA's NVML, and does as its script says."""
