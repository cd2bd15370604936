"""The kernel fusion: which kernels are summed, and how strong the penalty is."""
