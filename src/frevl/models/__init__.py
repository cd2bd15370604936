"""The networks, in pure PyTorch: the FrEVL fusion, its baselines, and retrieval models.

Tensors in, tensors out. `interface` defines a network for the rest of the package, and `registry` lists all networks.
Only the hub module reads files, to download published runs.
"""
