"""From an id to its row, without an object of Python for every row of a store."""
