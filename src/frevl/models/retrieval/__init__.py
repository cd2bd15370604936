"""Networks for retrieval: first stages (two-tower and cosine), kernel alignment, the reranker."""
