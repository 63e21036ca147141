"""The engine: logits for lists of token sequences, without computing on padding."""

from polyhead.engine.gpt2 import GPT2Engine

__all__ = ["GPT2Engine"]
