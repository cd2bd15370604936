"""Wrong lines that are drawn, to know what they look like to the models."""
