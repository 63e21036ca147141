"""From texts to token ids, in the same way for training, evaluation and serving."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from polyhead.cut_word import added_tokens, first_tokens_are_certain, word_pieces
from polyhead.scripts import scripts_of
from polyhead.template import Template
from polyhead.windows import Windows

if TYPE_CHECKING:
    from polyhead.ngrams import NGrams  # it imports torch, which who only tokenizes does not need

# How much of a text is tokenized, in bytes of UTF-8 per token of `max_length`. English has 4 to 5, German 3.
FIRST_BYTES = 8
MOST_BYTES = 32  # or the longest token's, if the tokens of a cut word can be proved
MOST_BYTES_OF_A_TOKEN = 80  # GPT-2 has a token of 64 dashes, and one of 128 bytes that no text is full of
LEAST_LIMIT = 24_576  # bytes that the last try may read, however small `max_length` is: 8,192 Chinese characters


@dataclass(frozen=True)
class EncodedText:
    """A text as the engine reads it, or the reason why it cannot be read.

    Attributes:
        token_ids: what is read of it, at most ``max_length`` ids; empty if there is an error. `encode` gives an array
            of int32: it takes a ninth of the memory of Python's integers, and the engine copies it in one step.
        truncated: whether the text had more tokens than were read.
        error: the reason why this text gets no answer; None if it gets one.
        is_plain: whether it came as plain text although the model declares fields.
        ngram_logits: float32 ``(schema.width,)``: what the n-grams add to the network's logits; None if there are none.
        windows: how it is cut, if it has more than one window.
        script: of its letters, see `polyhead.scripts`; empty if there is an error.
    """

    token_ids: Sequence[int]
    truncated: bool = False
    error: str | None = None
    is_plain: bool = False
    ngram_logits: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    windows: Windows | None = None
    script: str = field(default="", compare=False)

    @property
    def token_count(self) -> int:
        """Number of tokens that the model reads."""
        return len(self.token_ids)

    @property
    def computed_tokens(self) -> int:
        """Number of tokens that the engine computes: of all windows, where shared tokens count twice."""
        return self.token_count if self.windows is None else self.windows.computed(self.token_count)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for texts that get equal scores."""
        # Bytes, because Python keeps their hash: a key is looked up several times.
        ngrams = None if self.ngram_logits is None else self.ngram_logits.tobytes()
        return array("i", self.token_ids).tobytes(), ngrams


UNKNOWN = EncodedText((), error="the tokenizer does not know a part of the text")


class UnreadableTextError(Exception):
    """A text cannot be read; the message is the reason."""


def encode(
    texts: Sequence[str | bytes], tokenizer: Tokenizer, max_length: int, ngrams: NGrams | None = None
) -> list[EncodedText]:
    """Tokenizes and keeps the first `max_length` tokens of each text.

    Only the beginning of a long text is tokenized; its tokens are the same as if the whole text were tokenized.

    Never raises for a bad text; it is returned with its ``error``. Bad are blank texts, invalid UTF-8, and texts whose
    first `most_bytes` do not tell the tokens; `polyhead.cut_word` says when this can happen.
    """
    encoded: dict[int, EncodedText] = {}
    short: dict[int, str] = {}  # by position
    long: dict[int, str] = {}
    enough = 1 + max(LEAST_LIMIT, MOST_BYTES_OF_A_TOKEN * max_length)  # not to hold megabytes of each text
    for position, given in enumerate(texts):
        try:
            text = read_text(given)[:enough]
        except UnreadableTextError as error:
            encoded[position] = EncodedText((), error=str(error))
        else:
            is_short = len(text) == len(_first_bytes(text, FIRST_BYTES * max_length))
            (short if is_short else long)[position] = text
    # The fast way finds no offsets, which only cut texts need.
    whole = list(short.values())
    encodings = _encodings(tokenizer.encode_batch_fast, whole)
    for position, found, script in zip(short, encodings, scripts_of(whole), strict=True):
        encoded[position] = UNKNOWN if found is None else _keep(found.ids, max_length, script)
    if long:
        encoded |= zip(long, _encode_long(list(long.values()), tokenizer, max_length), strict=True)
    if ngrams is not None:
        readable = {position: text for position, text in (short | long).items() if encoded[position].error is None}
        for position, logits in zip(readable, ngrams.logits(list(readable.values())), strict=True):
            encoded[position] = replace(encoded[position], ngram_logits=logits)
    return [encoded[position] for position in range(len(texts))]


def with_ngrams(logits: NDArray[np.float32], encoded: Sequence[EncodedText]) -> NDArray[np.float32]:
    """The network's logits ``(n, schema.width)`` and what the n-grams of each text add to them."""
    if not encoded or encoded[0].ngram_logits is None:
        return logits
    return logits + np.stack([text.ngram_logits for text in encoded if text.ngram_logits is not None])


def encode_elements(
    elements: Sequence[str | bytes],
    template: Template,
    tokenizer: Tokenizer,
    max_length: int,
    ngrams: NGrams | None = None,
) -> list[EncodedText]:
    """Renders the elements of TEXT with the model's template, then encodes them.

    Never raises for a bad element; it is returned with its ``error``. See `Template.read` for what is rendered.
    """
    read = [template.read(element) for element in elements]
    encoded = encode([one.text for one in read], tokenizer, max_length, ngrams)
    return [
        replace(text, is_plain=one.is_plain, error=one.error or text.error)
        for one, text in zip(read, encoded, strict=True)
    ]


def _encode_long(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> list[EncodedText]:
    """Tokenizes as much of each text as its first `max_length` tokens need."""
    encoded: dict[int, EncodedText] = {}
    size, most, scripts = FIRST_BYTES * max_length, most_bytes(tokenizer, max_length), scripts_of(texts)
    while rest := [position for position in range(len(texts)) if position not in encoded]:
        beginnings = [_first_bytes(texts[position], size) for position in rest]
        for position, beginning, found in zip(
            rest, beginnings, _encodings(tokenizer.encode_batch, beginnings), strict=True
        ):
            is_whole = len(beginning) == len(texts[position])
            if found is None:  # the cut may have made a word that the tokenizer does not know
                if is_whole or size == most:
                    encoded[position] = UNKNOWN
            elif is_whole or _tells_first_tokens(found, beginning, tokenizer, max_length):
                encoded[position] = _keep(found.ids, max_length, scripts[position])
            elif size == most:
                reason = f"the text's first {len(beginning)} characters have too few words"
                encoded[position] = EncodedText((), error=reason)
        size = min(4 * size, most)
    return [encoded[position] for position in range(len(texts))]


def _encodings(encode_batch: Callable[[list[str]], list[Encoding]], texts: list[str]) -> list[Encoding | None]:
    """The encodings of all texts; None for a text that the tokenizer refuses.

    Some tokenizers refuse a word that they do not know, and then the whole batch.
    """
    try:
        return list(encode_batch(texts))
    except Exception:  # the tokenizers library raises plain Exception
        if len(texts) == 1:
            return [None]
        return [encoding for text in texts for encoding in _encodings(encode_batch, [text])]


def most_bytes(tokenizer: Tokenizer, max_length: int) -> int:
    """About the most bytes of a text that are tokenized at once."""
    pieces = word_pieces(tokenizer)
    longest = 0 if pieces is None else min(pieces.longest + 1, MOST_BYTES_OF_A_TOKEN)
    return max(LEAST_LIMIT, max_length * max(longest, MOST_BYTES))


def _first_bytes(text: str, size: int) -> str:
    """The beginning of the text that has about `size` bytes."""
    beginning = text[:size]
    return beginning if beginning.isascii() else text[: max(1, size * len(beginning) // len(beginning.encode("utf-8")))]


def _tells_first_tokens(encoding: Encoding, text: str, tokenizer: Tokenizer, max_length: int) -> bool:
    """Whether the first `max_length` ids of `text` stay the same, and more follow, whatever text follows it."""
    if len(encoding.ids) <= max_length:
        return False
    words = encoding.word_ids  # None for tokens that a template adds around the text
    # The cut may split an added token, <|endoftext|> for example, which is then not found.
    safe = len(text) - max(map(len, added_tokens(tokenizer)), default=0)
    if _whole_words(words, encoding.offsets, safe) > max_length:
        return True
    end = max((place for place, word in enumerate(words, start=1) if word is not None), default=0)
    first = next((place for place in range(end, 0, -1) if words[place - 1] != words[end - 1]), 0)
    wanted = max(max_length - first, 0)
    return first_tokens_are_certain(tokenizer, text, encoding.ids[first:end], encoding.tokens[first:end], wanted)


def _whole_words(words: Sequence[int | None], offsets: Sequence[tuple[int, int]], safe: int) -> int:
    """How many tokens stay the same, because they belong to words that no following text can change.

    Tokenizers split into words first. The following text can change the last word and all words that end after the
    character `safe`. If these begin with blanks, it can also change the word before.
    """
    unsure = max((word for word in words if word is not None), default=0)
    for word, (_, end) in zip(words, offsets, strict=True):
        if word is not None and end > safe:
            unsure = min(unsure, word)
            break
    return next((place for place, word in enumerate(words) if word is not None and word >= unsure - 1), 0)


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


def _keep(ids: list[int], max_length: int, script: str) -> EncodedText:
    if not ids:
        return EncodedText((), error="the text has no tokens")
    return EncodedText(array("i", ids[:max_length]), truncated=len(ids) > max_length, script=script)
