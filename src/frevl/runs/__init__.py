"""A trained network on disk, and everything that scores with it: pairs, grids, files, search.

`Scorer` is the one way from a pair to a score, for the command line, HTTP and Python alike.
"""
