"""Benchmarks, one file each: `add_arguments(parser)`, and `run(args)`, which returns a report."""
