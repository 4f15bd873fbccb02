"""Costs of a program, counted before it runs: in its jaxpr (flops) and its compiled text (hlo, roofline)."""
