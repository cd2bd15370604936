"""A classifier refitted while people label, and its predictions for every image."""
