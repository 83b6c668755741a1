"""NVIDIA's Triton Inference Server beside the gateway: its environment, its process, its backends."""
