"""What a filter removes beside what it was asked for: which groups lose most, and how much of the variety is left."""
