"""Polyhead's tables: every file of texts that the product reads, and every file of answers that it writes."""
