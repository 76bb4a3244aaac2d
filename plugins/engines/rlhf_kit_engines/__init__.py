"""Engines: who takes the optimizer steps of a stage, and over which ranks."""
