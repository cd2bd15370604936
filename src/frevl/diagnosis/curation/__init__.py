"""Curation of captions, labels and test sets: filters that check every line, and what they remove."""
