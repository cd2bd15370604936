"""The map: the pictures of a store as points in the plane."""
