"""Pure functions over tensors. Shape legend: see rlhf_kit.types."""
