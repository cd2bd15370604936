"""Labels: a run of images alone labels a whole store, and chooses what people label next; as files, and as pages."""
