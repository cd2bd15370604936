"""A folder of images: which files belong to it, what is read of them, what became of them since the last time."""
