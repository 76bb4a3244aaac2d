"""Transformers models for rlhf_kit: sources, memory strategies, policies, reward models."""
