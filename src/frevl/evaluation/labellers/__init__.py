"""How far people agree on the labels of the same pictures."""
