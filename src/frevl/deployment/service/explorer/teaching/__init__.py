"""A classifier that is fitted again while somebody labels, and its predictions for every picture."""
