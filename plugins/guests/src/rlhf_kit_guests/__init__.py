"""Guests: algorithms that rlhf-kit does not bring, written as a stranger would."""
