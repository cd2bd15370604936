"""Fairness: how results differ between groups of pictures, and who appears in the first hits of a search."""
