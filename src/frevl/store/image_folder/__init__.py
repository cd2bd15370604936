"""A folder of images: its files, what is read from them, and what has changed since the last time."""
