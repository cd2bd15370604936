"""Map ids to rows without a Python object for every row of a store."""
