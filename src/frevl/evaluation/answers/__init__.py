"""Properties of a run's answers beyond being right or wrong."""
