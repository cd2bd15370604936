"""Reading pairs: pairs files, published benchmarks, VQA answers.

Reads descriptions of images and texts; independent of encoders, stores and networks.
"""
