"""Observers for rlhf_kit: they watch a run and change nothing."""
