"""What never won, what serves only experiments, and the experiment log. Not installed."""
