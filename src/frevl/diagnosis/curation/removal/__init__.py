"""Side effects of filters: which groups lose most, and how much variety remains."""
