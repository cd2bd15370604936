"""Trained networks on disk, and everything that scores with them: pairs, grids, files, search.

All scoring goes through `Scorer`, from the command line, HTTP and Python alike.
"""
