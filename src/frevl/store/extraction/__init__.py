"""Extraction: embed images and texts into a store, decoding next to the networks; a repeated call resumes."""
