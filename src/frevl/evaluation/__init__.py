"""Metrics with confidence intervals: accuracy, retrieval, calibration, slices, comparisons.

Takes a scorer and pairs with known answers; trains nothing.
"""
