"""Tests of vetting as a whole: runner, meetings, gate and node, without a cluster."""
