"""The predictor: texts in, answers out. Triton's ``model.py``, evaluation and the gate at export all go through it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer

from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.decode import DecodeOptions, Scores, decode, to_scores
from polyhead.encode import EncodedText, encode
from polyhead.engine import GPT2Engine
from polyhead.engine.gpt2 import TOKEN_BUDGET
from polyhead.engine.memory import activation_bytes
from polyhead.errors import MachineError, OptionError
from polyhead.machine import available_memory_bytes
from polyhead.parts import parts

PART_TOKENS = 1024  # on the CPU: its linear layers are at their best at 256 to 1,024 rows, and a part is soon done


class Predictor:
    """A checkpoint ready to answer. A bad text spoils its own answer and no other; nothing raises for it."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", precision: str = "auto") -> None:
        if precision not in {"auto", "fp32"}:
            raise OptionError(f"precision must be one of auto, fp32, got {precision!r}")
        self.checkpoint = checkpoint
        self.schema = checkpoint.schema
        self.max_length = checkpoint.spec.max_length
        self._tokenizer: Tokenizer = checkpoint.tokenizer
        self.precision = "fp32"
        self.device = device
        self.token_budget = TOKEN_BUDGET
        self.part_tokens = PART_TOKENS if device == "cpu" else TOKEN_BUDGET
        self._engine = GPT2Engine(checkpoint, device)

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu", precision: str = "auto") -> Predictor:
        """Reads a checkpoint folder; raises CheckpointError if it is not whole."""
        return cls(read_checkpoint(path), device, precision)

    def predict(self, texts: Sequence[str | bytes], options: DecodeOptions | None = None) -> list[dict[str, Any]]:
        """One answer a text, as `decode` gives them."""
        encoded = self.encode(texts)
        return self.decode(encoded, self.score(encoded), options or DecodeOptions())

    def encode(self, texts: Sequence[str | bytes]) -> list[EncodedText]:
        """Tokenizes; keeps the first ``max_length`` tokens of each text."""
        return encode(texts, self._tokenizer, self.max_length)

    def score(self, encoded: Sequence[EncodedText]) -> Scores:
        """Calibrated scores, float32 ``(n, schema.width)``; a row of NaN for a text with an error."""
        scores = np.full((len(encoded), self.schema.width), np.nan, dtype=np.float32)
        readable = [position for position, text in enumerate(encoded) if text.error is None]
        if readable:
            logits = self._engine.logits([encoded[position].token_ids for position in readable])
            scores[readable] = to_scores(logits, self.schema)
        return scores

    def decode(self, encoded: Sequence[EncodedText], scores: Scores, options: DecodeOptions) -> list[dict[str, Any]]:
        """Answers of texts already scored: ``heads``, ``token_count`` and ``truncated``, or ``error`` alone."""
        return [
            {"error": text.error}
            if text.error is not None
            else {
                "heads": decode(row, self.schema, options),
                "token_count": text.token_count,
                "truncated": text.truncated,
            }
            for text, row in zip(encoded, scores, strict=True)
        ]

    def parts(self, encoded: Sequence[EncodedText]) -> list[list[int]]:
        """Positions of the texts, shortest first, in parts to be scored one after the other, each of bounded cost."""
        return parts([text.token_ids for text in encoded], self.part_tokens)

    def warm_up(self) -> int:
        """Proves that the largest micro-batch fits into memory, before the first request.

        A CUDA device computes one. On the CPU that would take seconds of a start; there the bound of
        `activation_bytes` must lie within what the machine and the container's limit have left.

        Returns:
            The tokens of that micro-batch.

        Raises:
            MachineError: it does not fit.
        """
        tokens = max(self.token_budget, self.max_length)
        needed = activation_bytes(self.checkpoint.body, tokens)
        if self.device == "cpu":
            available = available_memory_bytes()
            if needed > available:
                raise MachineError(
                    f"a micro-batch of {tokens} tokens takes up to {needed / 2**20:.0f} MiB of memory, "
                    f"and {available / 2**20:.0f} MiB are left"
                )
            return tokens
        texts, rest = divmod(tokens, self.max_length)
        lengths = [self.max_length] * texts + [rest] * (rest > 0)
        # The first token differs: identical texts are computed once.
        vocabulary = self.checkpoint.body.vocab_size
        self._engine.logits([[n % vocabulary, *[0] * (length - 1)] for n, length in enumerate(lengths)])
        return tokens

    def schema_json(self) -> bytes:
        """What a client needs to know of the model: ``max_length`` and the heads."""
        return orjson.dumps({"max_length": self.max_length, "heads": self.schema.to_json()})
