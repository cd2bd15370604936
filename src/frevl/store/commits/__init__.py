"""The last commit of every table, recorded a second time outside the table, and clean-up after a killed writer.

A table is what its manifests say: one that lost them would otherwise look like one that was never written.
"""
