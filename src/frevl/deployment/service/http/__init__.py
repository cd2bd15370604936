"""The service below its routes: limits, request bodies, connections, logs, metrics."""
