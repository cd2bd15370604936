"""Metrics with confidence intervals: accuracy, retrieval, calibration, slices, comparisons.

Everything here needs only a scorer and pairs with known answers; nothing is trained.
"""
