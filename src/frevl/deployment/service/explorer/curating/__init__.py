"""Curation on the page: the findings of `frevl curate`, people's decisions, and the remaining lines."""
