"""What saves memory or time and changes no result: recomputation, the host's memory, fused kernels."""
