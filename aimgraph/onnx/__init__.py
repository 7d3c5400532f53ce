"""Transformed models as ONNX files: export, comparison with torch, check and session."""
