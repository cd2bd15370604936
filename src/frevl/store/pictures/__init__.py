"""Pictures on their way into a store, from folders, tables and tars: which there are, and what has changed."""
