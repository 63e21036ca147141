"""The peers: other engines on the same token ids, and other servers around the same model."""
