"""The predictor: texts in, answers out. Triton's ``model.py``, evaluation, scoring and export all use it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from polyhead.checkpoint import Checkpoint, read_checkpoint
from polyhead.decode import DecodeOptions, Scores, are_answers, decode_all, to_scores
from polyhead.encode import EncodedText, encode, encode_elements, with_ngrams
from polyhead.engine import Engine
from polyhead.engine.cpu.forward import BetweenLayers, activation_bytes
from polyhead.errors import MachineError, ToleranceError
from polyhead.gate import check_answers
from polyhead.golden import GoldenRow
from polyhead.machine import available_memory_bytes
from polyhead.precision import TOLERANCE, Precision, fastest_precision, requested_precision

# Tokens of golden rows that a load checks: under a second if the precision is fast here. For a GPT-2 small in fp32, 512
# tokens take half a second on two slow cores.
LOAD_TOKENS: dict[Precision, int] = {"fp32": 512, "bf16": 2048, "int8": 2048}

NOT_FINITE = "the model's scores of this text are not finite numbers"

logger = logging.getLogger(__name__)


class Predictor:
    """A checkpoint that is ready to answer. A bad text gets an error; other texts are not affected."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", precision: str = "fp32") -> None:
        self.checkpoint = checkpoint
        self.schema = checkpoint.schema
        self.windows = checkpoint.spec.windows
        self.max_length = self.windows.reach  # the most tokens of a text that are read
        self.template = checkpoint.spec.template
        self._tokenizer: Tokenizer = checkpoint.tokenizer
        self._engine = Engine(checkpoint, device, precision)
        self.precision = self._engine.precision
        self.device = self._engine.device
        self.token_budget = self._engine.token_budget  # the most tokens that are computed at once
        self.enough_tokens = self._engine.forward.enough_tokens  # so many keep the device busy
        self.tokenizes_ahead = self.device.type != "cpu"
        self.refused_precision: Precision | None = None  # the faster one that `load` found too inexact for this model

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu", precision: str | None = None) -> Predictor:
        """Reads a checkpoint folder, and checks its answers with the first of its golden rows.

        Args:
            path: the folder.
            device: ``cpu`` or a CUDA device.
            precision: ``fp32``, ``bf16``, ``int8`` or ``auto``. ``auto`` takes bf16 if the hardware has it and the
                golden rows keep its tolerance, else fp32. None: the environment's POLYHEAD_PRECISION, else ``auto``.

        Raises:
            CheckpointError: the checkpoint is incomplete or damaged.
            OptionError: there is no such precision, or not on this device.
            ToleranceError: the golden rows do not keep the tolerance of the precision, or with ``auto`` of fp32.
        """
        checkpoint = read_checkpoint(path)
        if checkpoint.unproved is not None:
            logger.warning("note: %s", checkpoint.unproved)
        requested = requested_precision(precision)
        chosen = fastest_precision(torch.device(device)) if requested == "auto" else requested
        predictor = cls(checkpoint, device, chosen)
        try:
            predictor.check_golden(LOAD_TOKENS[predictor.precision])
        except ToleranceError as error:
            if requested != "auto" or predictor.precision == "fp32":
                raise
            logger.warning("serving in fp32: %s", error)
            refused = predictor.precision
            del predictor  # its weights and graphs would stay in the GPU's memory while the next ones are made
            predictor = cls(checkpoint, device, "fp32")
            predictor.refused_precision = refused
            predictor.check_golden(LOAD_TOKENS["fp32"])
        return predictor

    def predict(self, texts: Sequence[str | bytes], options: DecodeOptions | None = None) -> list[dict[str, Any]]:
        """One answer per text, as `decode` returns them."""
        encoded = self.encode(texts)
        return self.decode(encoded, self.score(encoded), options or DecodeOptions())

    def predict_chunks(
        self, chunks: Iterable[Sequence[str | bytes]], options: DecodeOptions | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """The answers of `predict` for each chunk of texts; a GPU computes one chunk while the next is tokenized.

        On a CPU both would use the same cores, and the engine would wait for the interpreter's lock.
        """
        chosen = options or DecodeOptions()
        for encoded in self._encode_ahead(chunks) if self.tokenizes_ahead else map(self.encode, chunks):
            yield self.decode(encoded, self.score(encoded), chosen)

    def _encode_ahead(self, chunks: Iterable[Sequence[str | bytes]]) -> Iterator[list[EncodedText]]:
        """The encoded texts of each chunk; another thread encodes the next chunk while the caller uses this one.

        So an error of `chunks` comes before the chunk that was read last is given out.
        """
        with ThreadPoolExecutor(1, "polyhead-tokenizer") as tokenizer:
            ahead: Future[list[EncodedText]] | None = None
            for chunk in chunks:
                following = tokenizer.submit(self.encode, chunk)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def encode(self, texts: Sequence[str | bytes], *, are_rendered: bool = False) -> list[EncodedText]:
        """Tokenizes the texts and keeps the first ``max_length`` tokens of each.

        Args:
            texts: plain texts or, if the model has a template, JSON objects of its fields.
            are_rendered: the template has made these texts, so even one that looks like JSON is used as it is.
        """
        if self.template is None or are_rendered:
            encoded = encode(texts, self._tokenizer, self.max_length, self.checkpoint.ngrams)
        else:
            ngrams = self.checkpoint.ngrams
            encoded = encode_elements(texts, self.template, self._tokenizer, self.max_length, ngrams)
        windows = self.windows
        if windows.most == 1:
            return encoded
        return [replace(text, windows=windows) if text.token_count > windows.length else text for text in encoded]

    def score(self, encoded: Sequence[EncodedText]) -> Scores:
        """Calibrated scores, float32 ``(n, schema.width)``.

        A text with an error has a row of NaN; so has a text for which the model's numbers overflow.
        """
        scores = np.full((len(encoded), self.schema.width), np.nan, dtype=np.float32)
        readable = [position for position, text in enumerate(encoded) if text.error is None]
        if readable:
            logits = self._logits([encoded[position].token_ids for position in readable])
            scores[readable] = to_scores(with_ngrams(logits, [encoded[row] for row in readable]), self.schema)
        return scores

    def _logits(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The network's logits of each text ``(n, schema.width)``: the mean over its windows, if it has several."""
        if self.windows.most == 1:
            return self._engine.logits(token_ids)
        windows = [window for ids in token_ids for window in self.windows.cut(ids)]
        return self.windows.pool(self._engine.logits(windows), [len(ids) for ids in token_ids])

    def decode(self, encoded: Sequence[EncodedText], scores: Scores, options: DecodeOptions) -> list[dict[str, Any]]:
        """Answers for scored texts: ``heads``, ``token_count`` and ``truncated``, or only ``error``."""
        have = are_answers(scores) & np.array([text.error is None for text in encoded], dtype=np.bool_)
        heads = iter(decode_all(scores[have], self.schema, options))
        return [
            {"heads": next(heads), "token_count": text.token_count, "truncated": text.truncated}
            if has_answer
            else {"error": text.error or NOT_FINITE}
            for text, has_answer in zip(encoded, have.tolist(), strict=True)
        ]

    def set_between_layers(self, between_layers: BetweenLayers) -> None:
        """On a CPU, calls this between the layers of a micro-batch; computes first what it returns."""
        self._engine.set_between_layers(between_layers)

    @property
    def computed_layers(self) -> int:
        """How many layers the engine has computed, on a CPU: shows progress within a long micro-batch."""
        return self._engine.computed_layers

    def check_golden(self, most_tokens: int | None = None) -> float:
        """Passes the checkpoint's golden rows through the gate; returns the largest distance of a score.

        Args:
            most_tokens: check only the first rows, up to this many tokens but at least one row; None checks all.

        Raises:
            CheckpointError: as for `Checkpoint.golden`.
            ToleranceError: as for `polyhead.gate.check_answers`.
        """
        golden = _first_rows(self.checkpoint.golden(), most_tokens)
        encoded = self.encode([row.text for row in golden], are_rendered=True)  # `golden` has compared rendered fields
        tokens = [(text.token_count, text.truncated) for text in encoded]
        place = str(self.checkpoint.path / "golden.jsonl")
        return check_answers(golden, tokens, self.score(encoded), self.precision, self.schema, place)

    def warm_up(self) -> int:
        """Checks, before the first request, that the largest micro-batch fits into memory.

        A CUDA device computes one. On the CPU that would take seconds at every start. So there the upper bound of
        `activation_bytes` must fit into the memory that the machine and the container's limit leave.

        Returns:
            The tokens of that micro-batch.

        Raises:
            MachineError: it does not fit.
        """
        longest = self.windows.length
        tokens = max(self.token_budget, longest)
        # Texts may pass between the layers of the largest micro-batch. One of several windows may fill another one.
        passing = self.enough_tokens if self.windows.most == 1 else tokens
        needed = activation_bytes(self.checkpoint.body, tokens) + activation_bytes(self.checkpoint.body, passing)
        if self.device.type == "cpu":
            available = available_memory_bytes()
            if needed > available:
                raise MachineError(
                    f"a micro-batch of {tokens} tokens takes up to {needed / 2**20:.0f} MiB of memory, "
                    f"and {available / 2**20:.0f} MiB are left"
                )
            return tokens
        texts, rest = divmod(tokens, longest)
        lengths = [longest] * texts + [rest] * (rest > 0)
        # The first token differs because equal texts are computed once.
        vocabulary = self.checkpoint.body.vocab_size
        self._engine.logits([[n % vocabulary, *[0] * (length - 1)] for n, length in enumerate(lengths)])
        return tokens

    def schema_json(self) -> bytes:
        """One element of the wire's SCHEMA: ``max_length``, ``precision``, its ``tolerance``, template and ``heads``.

        A score may be off from its float32 value by ``tolerance``; see `polyhead.precision.TOLERANCE`.
        """
        return orjson.dumps(
            {
                "max_length": self.max_length,
                "precision": self.precision,
                "tolerance": TOLERANCE[self.precision],
                "text_template": None if self.template is None else self.template.source,
                "fields": [] if self.template is None else list(self.template.fields),
                "heads": self.schema.to_json(),
            }
        )


def _first_rows(golden: Sequence[GoldenRow], most_tokens: int | None) -> Sequence[GoldenRow]:
    if most_tokens is None:
        return golden
    total = np.cumsum([row.token_count for row in golden])
    return golden[: max(1, int(np.searchsorted(total, most_tokens, side="right")))]
