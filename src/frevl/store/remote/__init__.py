"""Stores in an object store (S3 and the like): read where they are, written by copying a whole store there."""
