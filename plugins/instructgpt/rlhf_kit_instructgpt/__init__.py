"""The InstructGPT pipeline for rlhf_kit: SFT, comparisons, reward model."""
