"""Grain input pipeline: sources of examples, and aligned random crops for a stage's batch spec."""
