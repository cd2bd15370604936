"""Networks that put images into classes, by names, by examples, or by both; and how each is solved. Pure torch."""
