"""Findings about embeddings: geometry, probes, comparison of encoders."""
