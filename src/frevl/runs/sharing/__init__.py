"""Runs that leave their folder: published on a model hub with a card of their own records, or exported as ONNX."""
