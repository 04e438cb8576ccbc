"""Tests of sampling and scoring as a whole, on scripted GPUs."""
