"""Input pipeline (Grain): sources of examples, and batches of aligned random crops."""
