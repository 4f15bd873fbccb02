"""Grain input: sources of examples, and one aligned random crop driven by a stage's batch spec."""
