"""A run in use elsewhere: exported to ONNX, served over HTTP, and what a pair costs."""
