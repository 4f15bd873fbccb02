"""Recipes are data: one page per recipe, its command and the numbers it reached on top."""
