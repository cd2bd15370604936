"""Sharded extraction: every process embeds its share of the items into a part, and the parts are merged."""
