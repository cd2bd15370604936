"""Export a run to ONNX and check it against PyTorch."""
