"""Reading pairs: pairs files, published benchmarks, VQA answers.

The package reads descriptions of images and texts, and does not depend on encoders, stores or networks.
"""
