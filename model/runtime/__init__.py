"""What computes the towers: PyTorch, packed or compiled weights, ONNX Runtime, CUDA graphs."""
