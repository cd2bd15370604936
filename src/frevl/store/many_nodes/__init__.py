"""Distribute work over the nodes of a Ray cluster: the connection, the workers, and extraction."""
