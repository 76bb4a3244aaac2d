"""Reward functions for rlhf_kit: any Python function, VADER sentiment, sums, ensembles."""
