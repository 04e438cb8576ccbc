"""Counters of steps, sampled and kept: what score and observability share."""
