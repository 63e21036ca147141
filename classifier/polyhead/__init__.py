"""Polyhead: GPT-2 text classifiers with many heads. What training and serving share; never imports transformers."""

__version__ = "0.1.0"
