"""Core sets: a small part of a test set that preserves the order of runs and their differences."""
