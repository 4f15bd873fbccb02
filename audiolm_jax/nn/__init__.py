"""Layers, which depend on arrays only, not on data sets, optimizers or stages."""
