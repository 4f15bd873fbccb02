"""Timings side by side, a file each: `add_arguments(parser)` and `run(args)`, which returns the
report as text.
"""
