"""Training on embeddings that do not fit in memory: items in a file, rows shuffled by blocks within blocks."""
