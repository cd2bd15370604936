"""Routes with which the page queries runs and shows their reports."""
