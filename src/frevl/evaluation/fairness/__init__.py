"""How results differ between groups of pictures: rates by group, and who is shown in the first hits of a search."""
