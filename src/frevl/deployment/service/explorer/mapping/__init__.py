"""The pictures of a store as points in the plane."""
