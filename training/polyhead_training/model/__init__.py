"""The model: the two classes, packed batches, losses, bodies, tokenizers, adapters."""
