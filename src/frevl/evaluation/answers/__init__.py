"""What the answers of a run say beyond being right or wrong."""
