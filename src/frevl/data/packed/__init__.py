"""Pairs of large files as Arrow: columns in codes, read in blocks, kept beside the file."""
