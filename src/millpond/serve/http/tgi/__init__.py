"""Text Generation Inference's HTTP protocol, on a port of its own."""
