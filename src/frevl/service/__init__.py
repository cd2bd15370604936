"""The service: HTTP routes, the model worker, the web page."""
