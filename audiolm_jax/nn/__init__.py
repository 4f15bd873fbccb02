"""Layers. They know arrays, never datasets, optimizers or stages."""
