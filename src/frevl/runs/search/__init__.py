"""Search a store with a run: exact or by index, ranked hits, contact sheets."""
