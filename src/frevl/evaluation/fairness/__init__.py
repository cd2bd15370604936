"""Fairness: how results differ between groups of images, and who appears in the first hits of a search."""
