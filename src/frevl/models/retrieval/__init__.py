"""Networks for retrieval: two towers, kernel alignment, reranking."""
