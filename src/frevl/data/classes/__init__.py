"""Class files, and the prompts built from class names."""
