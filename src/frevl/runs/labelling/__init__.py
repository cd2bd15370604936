"""Labelling: a run for images labels a whole store, or chooses what people should label next; as files and as pages."""
