"""Files in, pairs out: pairs files, published benchmarks, VQA answers.

Reads what describes images and texts; knows no encoder, store or network.
"""
