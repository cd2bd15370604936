"""The HTTP layer of the service: limits, request bodies, connections, logs, metrics."""
