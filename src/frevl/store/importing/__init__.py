"""Import embeddings computed elsewhere: arrays, clip-retrieval folders, Parquet, Lance."""
