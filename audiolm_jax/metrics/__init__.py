"""Metrics on held-out data, one file per family."""
