"""Judging policies."""
