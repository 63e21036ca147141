"""GPT-2 on a CUDA device."""
