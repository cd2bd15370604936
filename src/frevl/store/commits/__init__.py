"""Record every table's last commit outside the table, and clean up after killed writers.

A table is defined by its manifests: one that lost them would otherwise look as if it had never been written.
"""
