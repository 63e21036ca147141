"""The predictor: texts in, answers out. Triton's ``model.py``, evaluation and the gate at export all go through it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from tokenizers import Tokenizer

from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.decode import DecodeOptions, Scores, decode, to_scores
from polyhead.encode import EncodedText, encode
from polyhead.engine import Engine, Precision, fastest_precision
from polyhead.engine.memory import activation_bytes
from polyhead.errors import MachineError, ToleranceError
from polyhead.gate import check_golden
from polyhead.machine import available_memory_bytes

LOAD_TOKENS = 2048  # of golden rows checked at load: under a second where the precision is fast

logger = logging.getLogger(__name__)


class Predictor:
    """A checkpoint ready to answer. A bad text spoils its own answer and no other; nothing raises for it."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", precision: str = "fp32") -> None:
        self.checkpoint = checkpoint
        self.schema = checkpoint.schema
        self.max_length = checkpoint.spec.max_length
        self._tokenizer: Tokenizer = checkpoint.tokenizer
        self._engine = Engine(checkpoint, device, precision)

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu", precision: str | None = None) -> Predictor:
        """Reads a checkpoint folder and proves its answers where the precision is less than float32.

        Args:
            path: the folder.
            device: ``cpu`` or a CUDA device.
            precision: ``fp32``, ``bf16``, ``int8``; or ``auto``: bf16 where the hardware has it and the tolerance on
                ``golden.jsonl`` is kept, else fp32. If None, what the environment's POLYHEAD_PRECISION names, or auto.

        Raises:
            CheckpointError: it is not whole.
            OptionError: there is no such precision, or not on this device.
            ToleranceError: the precision that was named does not keep the tolerance.
        """
        checkpoint = read_checkpoint(path)
        precision = precision or os.environ.get("POLYHEAD_PRECISION", "auto")
        wanted = fastest_precision(torch.device(device)) if precision == "auto" else precision
        predictor = cls(checkpoint, device, wanted)
        if predictor.precision == "fp32":
            return predictor
        try:
            check_golden(predictor, LOAD_TOKENS)
        except ToleranceError as error:
            if precision != "auto":
                raise
            logger.warning("serving in fp32: %s", error)
            return cls(checkpoint, device, "fp32")
        return predictor

    @property
    def precision(self) -> Precision:
        """Of the engine's linear layers."""
        return self._engine.precision

    @property
    def token_budget(self) -> int:
        """Most tokens that are computed at once."""
        return self._engine.token_budget

    @property
    def device(self) -> torch.device:
        """Where the engine computes."""
        return self._engine.device

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
        if self.device.type != "cpu":
            return [list(range(len(encoded)))]  # a GPU works best on a queue of all micro-batches
        return self._engine.plan([text.token_ids for text in encoded])

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
        if self.device.type == "cpu":
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
