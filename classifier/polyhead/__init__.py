"""Polyhead: the model library that training, serving and scoring share. Never imports transformers."""

__version__ = "0.1.0"
