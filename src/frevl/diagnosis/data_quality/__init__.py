"""Findings about data: leaks between training and test, near duplicates, label errors."""
