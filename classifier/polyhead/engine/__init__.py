"""The engine: logits for lists of token sequences, without computing on padding."""

from polyhead.engine.engine import Engine
from polyhead.engine.precision import PRECISIONS, Precision, fastest_precision

__all__ = ["PRECISIONS", "Engine", "Precision", "fastest_precision"]
