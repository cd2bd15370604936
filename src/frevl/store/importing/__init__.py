"""Import embeddings that were computed elsewhere: arrays, clip-retrieval folders, Parquet, Lance."""
