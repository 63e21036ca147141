"""Answers of the engine: texts are tokenized 1 MB at a time and scored in blocks, so that memory stays bounded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from polyhead.decode import DecodeOptions
from polyhead.encode import EncodedText
from polyhead.predictor import Predictor
from polyhead_rows.table_file import BadText

BLOCK_TOKENS = 65_536  # are scored at once; the engine cuts its own micro-batches from them
CHUNK_BYTES = 1 << 20  # of text are tokenized at once, or one text
CHUNK_TEXTS = 1024


class EngineAnswers:
    """One predictor in this process.

    Args:
        threads: that it computes with; None for all cores.
    """

    def __init__(
        self, checkpoint: Path, device: str, precision: str, options: DecodeOptions, threads: int | None = None
    ) -> None:
        import torch

        if threads is not None:
            os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizer
            os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
            torch.set_num_threads(threads)
        self.predictor = Predictor.load(checkpoint, device, precision)
        self.precision: str | None = self.predictor.precision
        self.options = options

    def answer(self, parts: Iterable[Sequence[str | BadText]]) -> Iterator[list[dict[str, Any]]]:
        """The answers to the texts of each part, in their order."""
        for texts in parts:
            yield list(answer_texts(self.predictor, texts, self.options))


def answer_texts(
    predictor: Predictor, texts: Sequence[str | BadText], options: DecodeOptions
) -> Iterator[dict[str, Any]]:
    """One answer per text, in order; a `BadText` gets its reason as the error."""
    block: list[EncodedText] = []
    tokens = 0
    for encoded in _encode(predictor, texts):
        if tokens + encoded.token_count > BLOCK_TOKENS:
            yield from predictor.decode(block, predictor.score(block), options)
            block, tokens = [], 0
        block.append(encoded)
        tokens += encoded.token_count
    yield from predictor.decode(block, predictor.score(block), options)


def _encode(predictor: Predictor, texts: Sequence[str | BadText]) -> Iterator[EncodedText]:
    chunk: list[str | BadText] = []
    size = 0
    for text in texts:
        more = len(text) if isinstance(text, str) else 0
        if chunk and (size + more > CHUNK_BYTES or len(chunk) == CHUNK_TEXTS):
            yield from _encode_chunk(predictor, chunk)
            chunk, size = [], 0
        chunk.append(text)
        size += more
    yield from _encode_chunk(predictor, chunk)


def _encode_chunk(predictor: Predictor, texts: Sequence[str | BadText]) -> list[EncodedText]:
    encoded = iter(predictor.encode([text for text in texts if isinstance(text, str)]))
    return [next(encoded) if isinstance(text, str) else EncodedText((), error=text.reason) for text in texts]
