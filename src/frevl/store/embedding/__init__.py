"""From items to rows of a store: prepared, embedded here or elsewhere, committed."""
