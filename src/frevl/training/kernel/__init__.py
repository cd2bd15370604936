"""Fitting the kernel fusion: choosing the sum of kernels and the penalty."""
