"""From texts to token ids: the same in training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer


@dataclass(frozen=True)
class EncodedText:
    """A text as the engine reads it, or why it cannot be read.

    Attributes:
        token_ids: at most ``max_length`` ids; empty where there is an error.
        truncated: whether the text had more tokens than were read.
        error: why this text has no answer; None if it has one.
    """

    token_ids: Sequence[int]
    truncated: bool = False
    error: str | None = None

    @property
    def token_count(self) -> int:
        """How many tokens the model reads."""
        return len(self.token_ids)


class UnreadableTextError(Exception):
    """A text that has no answer, and why."""


def encode(texts: Sequence[str | bytes], tokenizer: Tokenizer, max_length: int) -> list[EncodedText]:
    """Tokenizes and keeps the first `max_length` tokens of each text.

    Never raises for a bad text: blank texts and invalid UTF-8 come back with their ``error``.
    """
    readable: list[str] = []
    encoded: list[EncodedText | None] = []
    for text in texts:
        try:
            readable.append(read_text(text))
            encoded.append(None)
        except UnreadableTextError as error:
            encoded.append(EncodedText((), error=str(error)))
    tokens = iter(tokenizer.encode_batch(readable))
    return [_cut(next(tokens).ids, max_length) if text is None else text for text in encoded]


def read_text(text: str | bytes) -> str:
    """The text as a string that the tokenizer takes; raises UnreadableTextError if there is none."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        else:
            text.encode("utf-8")  # finds lone surrogates, which the tokenizer would refuse for the whole batch
    except UnicodeError:
        raise UnreadableTextError("the text is not valid UTF-8") from None
    if not text or text.isspace():
        raise UnreadableTextError("the text is empty or blank")
    return text


def _cut(ids: list[int], max_length: int) -> EncodedText:
    if not ids:
        return EncodedText((), error="the text has no tokens")
    return EncodedText(ids[:max_length], truncated=len(ids) > max_length)
