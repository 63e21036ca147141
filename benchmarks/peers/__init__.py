"""What the product is measured beside: engines on the same token ids, and servers of others around the same model."""
