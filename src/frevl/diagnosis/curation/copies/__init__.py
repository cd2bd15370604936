"""Images that occur more than once in a set: identical content or near duplicates."""
