"""One extraction in several processes: each embeds its share of the items into a part, and the parts are merged."""
