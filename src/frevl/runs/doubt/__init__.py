"""How much what a run is asked about is like what it has learned from."""
