"""Files that name classes, and the sentences made of the names."""
