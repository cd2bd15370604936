"""Fit one network to examples: the named model, by gradient descent or in closed form."""
