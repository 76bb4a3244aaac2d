"""Data sources for rlhf_kit: demonstrations, prompts, comparisons, running text."""
