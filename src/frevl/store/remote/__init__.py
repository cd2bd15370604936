"""Stores in an object store (S3 and the like): reading, writing, and copying whole stores."""
