"""Sharing runs: publishing on a model hub with a model card, and running exported ONNX files."""
