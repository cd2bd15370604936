"""The explorer: a store to look at and to label, over HTTP."""
