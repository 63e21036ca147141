"""From texts to token ids, in the same way for training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Encoding, Tokenizer

from polyhead.template import Template

FIRST_CHARACTERS = 8  # characters per token that the first try reads; English has 4 to 5, German 3


@dataclass(frozen=True)
class EncodedText:
    """A text as the engine reads it, or the reason why it cannot be read.

    Attributes:
        token_ids: at most ``max_length`` ids; empty if there is an error.
        truncated: whether the text had more tokens than were read.
        error: the reason why this text gets no answer; None if it gets one.
        is_plain: whether it came as plain text although the model declares fields.
    """

    token_ids: Sequence[int]
    truncated: bool = False
    error: str | None = None
    is_plain: bool = False

    @property
    def token_count(self) -> int:
        """Number of tokens that the model reads."""
        return len(self.token_ids)


class UnreadableTextError(Exception):
    """A text cannot be read; the message is the reason."""


def encode(texts: Sequence[str | bytes], tokenizer: Tokenizer, max_length: int) -> list[EncodedText]:
    """Tokenizes and keeps the first `max_length` tokens of each text.

    Only the beginning of a long text is tokenized; its tokens are the same as if the whole text were tokenized.

    Never raises for a bad text; it is returned with its ``error``. Bad are blank texts, invalid UTF-8, and texts of
    more than `most_characters` whose beginning has too few words to cut between.
    """
    encoded: list[EncodedText | None] = []
    readable: list[tuple[int, str]] = []
    for position, text in enumerate(texts):
        try:
            readable.append((position, read_text(text)))
            encoded.append(None)
        except UnreadableTextError as error:
            encoded.append(EncodedText((), error=str(error)))
    size, most = FIRST_CHARACTERS * max_length, most_characters(max_length)
    marker = 0  # characters of the longest added token: the cut may split an <|endoftext|>, which is then not found
    if any(len(text) > size for _, text in readable):
        marker = max((len(token.content) for token in tokenizer.get_added_tokens_decoder().values()), default=0)
    while readable:
        tokenized = tokenizer.encode_batch([text[:size] for _, text in readable])
        again = []
        for (position, text), found in zip(readable, tokenized, strict=True):
            if len(text) <= size:
                encoded[position] = _cut(found.ids, max_length)
            elif len(ids := _whole_words(found, size - marker)) > max_length:
                encoded[position] = _cut(ids, max_length)
            elif size < most:
                again.append((position, text))
            else:
                encoded[position] = EncodedText((), error=f"the text's first {most} characters have too few words")
        readable, size = again, min(size * 4, most)
    return [text for text in encoded if text is not None]


def encode_elements(
    elements: Sequence[str | bytes], template: Template, tokenizer: Tokenizer, max_length: int
) -> list[EncodedText]:
    """Renders the elements of TEXT with the model's template, then encodes them.

    Never raises for a bad element; it is returned with its ``error``. See `Template.read` for what is rendered.
    """
    read = [template.read(element) for element in elements]
    encoded = encode([one.text for one in read], tokenizer, max_length)
    return [
        replace(text, is_plain=one.is_plain, error=one.error or text.error)
        for one, text in zip(read, encoded, strict=True)
    ]


def most_characters(max_length: int) -> int:
    """The most characters of a text that are ever tokenized."""
    return max(65_536, 64 * max_length)


def _whole_words(encoding: Encoding, safe: int) -> list[int]:
    """The ids that stay the same, whatever text follows after the part that was tokenized.

    Tokenizers split into words first. The following text can change the last word and all words that end after the
    character `safe`. If these begin with blanks, it can also change the word before.
    """
    words = encoding.word_ids  # None for tokens that a template adds around the text
    unsure = max((word for word in words if word is not None), default=0)
    for word, (_, end) in zip(words, encoding.offsets, strict=True):
        if word is not None and end > safe:
            unsure = min(unsure, word)
            break
    first = next((place for place, word in enumerate(words) if word is not None and word >= unsure - 1), 0)
    return encoding.ids[:first]


def read_text(text: str | bytes) -> str:
    """The text as a string that the tokenizer accepts; raises UnreadableTextError if that is impossible."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        else:
            text.encode("utf-8")  # finds lone surrogates, for which the tokenizer would refuse the whole batch
    except UnicodeError:
        raise UnreadableTextError("the text is not valid UTF-8") from None
    if not text or text.isspace():
        raise UnreadableTextError("the text is empty or blank")
    return text


def _cut(ids: list[int], max_length: int) -> EncodedText:
    if not ids:
        return EncodedText((), error="the text has no tokens")
    return EncodedText(ids[:max_length], truncated=len(ids) > max_length)
