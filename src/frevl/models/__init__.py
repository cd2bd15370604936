"""The networks, in pure PyTorch: the FrEVL fusion, its baselines, and retrieval models.

Tensors in, tensors out; nothing here reads files, except the hub that downloads a published run.
"""
