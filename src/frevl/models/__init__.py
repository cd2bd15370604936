"""The networks, in pure PyTorch: the FrEVL fusion, its baselines, and retrieval models.

Tensors in, tensors out. `interface` says what a network is to the rest of the package, `registry` lists all of them.
Nothing here reads files, except the hub, which downloads published runs.
"""
