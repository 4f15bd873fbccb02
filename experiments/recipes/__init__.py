"""Recipes, one page each: data of a run, with its command and results in the docstring."""
