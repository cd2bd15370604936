"""Labels given by people: an append-only file in the store's folder, and its current state."""
