"""Pictures that stand in a set more than once: the same content, or nearly the same picture."""
