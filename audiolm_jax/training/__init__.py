"""The one train step and the one loop: optimizers, mesh, checkpoints."""
