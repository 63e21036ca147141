"""The engine: logits for lists of token sequences, without computing on padding (docs/decisions/0007-engine.md)."""

from polyhead.engine.engine import Engine
from polyhead.precision import PRECISIONS, Precision, fastest_precision

__all__ = ["PRECISIONS", "Engine", "Precision", "fastest_precision"]
