"""Curation on the page: what `frevl curate` found, what people say of it, and the lines that are left."""
