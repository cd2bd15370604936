"""What was committed last to every table, kept a second time outside of the table, and what a killed writer left.

A table is what its manifests say: one that lost them would otherwise look like one that was never written.
"""
