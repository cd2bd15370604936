"""Using a run elsewhere: ONNX export, the HTTP service, and measurements of what a pair costs."""
