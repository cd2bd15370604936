"""Training for matching and retrieval: two towers, hard negatives, reranking, late fusion of scores."""
