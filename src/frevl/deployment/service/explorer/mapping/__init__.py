"""The map: the images of a store as points in the plane."""
