"""Metrics with confidence intervals: accuracy, retrieval, calibration, slices, comparisons.

Works on a scorer and pairs with known answers; trains nothing.
"""
