"""Flags, recipe pages, overrides, caches and parallel starts, shared by the programs."""
