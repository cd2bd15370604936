"""Pairs of large files as Arrow: dictionary-encoded columns, read in blocks and cached next to the file."""
