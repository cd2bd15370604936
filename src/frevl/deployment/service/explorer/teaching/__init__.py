"""A classifier that is fitted again while somebody labels, and what it says of every picture."""
