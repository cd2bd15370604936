"""Labelling: labels for a whole store from a run for images, and what people should label next; files and pages."""
