"""Images to extract from folders, tables and tars: listing them and detecting changes."""
