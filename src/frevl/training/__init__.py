"""Training of runs from pairs: options, one training loop, model selection, retrieval training.

`training.train` is the entry point; every network is fitted by `fit_model`.
"""
