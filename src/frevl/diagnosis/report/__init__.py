"""The diagnosis as one HTML page, as Markdown and as plots."""
