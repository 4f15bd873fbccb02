"""Costs of a program, from its jaxpr (flops) and its compiled text (hlo, roofline)."""
