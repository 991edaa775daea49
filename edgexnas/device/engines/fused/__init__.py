"""A whole Bragg network as one kernel: read from its ONNX, laid out, compiled, run."""
