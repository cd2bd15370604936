"""What people say that pictures are: an append-only file in the store's folder, and what it amounts to."""
