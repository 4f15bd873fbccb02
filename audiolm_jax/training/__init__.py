"""Trains any stage: loop, train step, optimizers, sharding and checkpoints."""
