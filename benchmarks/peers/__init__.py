"""What the engine is measured beside, one family a file; all compute the same logits from the same token ids."""
