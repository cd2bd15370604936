"""The linear probe: its features at once or in blocks, its penalty, and what fits into a time limit."""
