"""Record every table's last commit outside the table, and clean up after killed writers.

A table is defined by its manifests; if it lost them, it would otherwise look as if it had never been written.
"""
