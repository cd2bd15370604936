"""A run of images alone labels a whole store: as a file, and as a page to look at."""
