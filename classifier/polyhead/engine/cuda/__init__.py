"""GPT-2's forward pass on a CUDA device."""
