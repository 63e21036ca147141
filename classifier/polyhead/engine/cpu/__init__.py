"""GPT-2's forward pass on the CPU."""
