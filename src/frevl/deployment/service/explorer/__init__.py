"""The explorer: browse and label a store over HTTP."""
