"""Ablation studies of the fusion: variants, a table, a plot."""
