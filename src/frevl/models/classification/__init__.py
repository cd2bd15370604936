"""Networks that classify images by class names, examples, or both, and their solvers. Pure torch."""
