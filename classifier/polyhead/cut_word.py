"""The tokens of a word that was cut: how many of them stay the same, whatever text follows.

A long word is expensive: merging the bytes of a whole word of 16 MB takes seconds, to keep 256 tokens. So only its
beginning is tokenized, and `first_tokens_are_certain` proves that the kept tokens are those of the whole word. The
proof is exact for BPE and Unigram models:

1. If the whole word has a token boundary at `i`, then its tokens up to `i` are the tokens of `word[:i]`. (Merges
   happen in order of rank and place, and none crosses a final boundary. The best path of Unigram to `i` does not
   depend on what follows `i`.)
2. Whatever follows, one token of the whole word covers the character at `p`, and it is an entry of the vocabulary. So
   the whole word has a boundary at one of the few places where such an entry ends.
3. If the tokens up to each of these places begin with the same tokens, then the whole word does too.
4. For BPE, tokens are right if each pair of neighbours is right. So tokenizing begins at the last token to prove.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

from tokenizers import Tokenizer, models

NEAR = 32  # units of a word between the tokens to prove and `p`; a merge that far away seldom has an effect
MOST_ENDS = 16  # Unigram: places whose tokens are compared; each costs as much as the kept tokens
# Normalizers that change each character on its own. Others are fine for ASCII, which they do not compose or reorder.
LOCAL_NORMALIZERS = ("Lowercase", "Prepend", "Strip")


@dataclass(frozen=True)
class WordPieces:
    """What is known about the words and tokens of a tokenizer.

    Attributes:
        model: the tokenizer's model, BPE or Unigram.
        entries: the vocabulary: token to id.
        longest: length of the longest token.
        longest_by_beginning: the same by a token's first two units.
        needs_ascii: whether the normalizer may change characters together with those that follow.
        margin: units at the end of a cut text's last word that the text after the cut may change.
    """

    model: models.BPE | models.Unigram
    entries: Mapping[str, int] = field(repr=False)
    longest: int
    longest_by_beginning: Mapping[str, int] = field(repr=False)
    needs_ascii: bool
    margin: int


def first_tokens_are_certain(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], tokens: Sequence[str], wanted: int
) -> bool:
    """Whether the first `wanted` tokens of the last word of `text` stay the same, and more follow, if text is appended.

    False also if that cannot be told.

    Args:
        ids: the ids of the last word of `text`, without added tokens.
        tokens: the same as in the vocabulary.
    """
    if len(tokens) <= wanted or (pieces := word_pieces(tokenizer)) is None:
        return False
    if pieces.needs_ascii and not text.isascii():
        return False
    word, ends = "".join(tokens), [0, *accumulate(map(len, tokens))]
    last = len(word) - pieces.margin - pieces.longest  # `p` may not be greater
    if ends[wanted] > last or not all(unit in pieces.entries for unit in set(word)):
        return False  # an unknown character is a token of its own kind
    is_bpe = isinstance(pieces.model, models.BPE)
    if is_bpe and pieces.model.unk_token in tokens:
        return False
    first = max(wanted - 1, 0) if is_bpe else 0
    expected = list(ids[first:wanted])
    for p in sorted({min(ends[wanted] + NEAR, last), last}):
        boundaries = _possible_ends(word, p, pieces)
        if not is_bpe and len(boundaries) > MOST_ENDS:
            return False
        found = (pieces.model.tokenize(word[ends[first] : end])[: len(expected)] for end in boundaries)
        if boundaries and all([token.id for token in beginning] == expected for beginning in found):
            return True
    return False


def _possible_ends(word: str, p: int, pieces: WordPieces) -> list[int]:
    """Where a token that covers the unit `p` can end."""
    ends = set()
    for start in range(max(0, p + 1 - pieces.longest), p + 1):
        most = pieces.longest_by_beginning.get(word[start : start + 2], 1)
        ends.update(end for end in range(p + 1, start + most + 1) if word[start:end] in pieces.entries)
    return sorted(ends)


@lru_cache(maxsize=4)
def word_pieces(tokenizer: Tokenizer) -> WordPieces | None:
    """What the proof needs; None for a tokenizer to which the proof does not apply."""
    model = tokenizer.model
    entries = tokenizer.get_vocab(with_added_tokens=False)
    if isinstance(model, models.BPE):
        fits = not (model.dropout or model.byte_fallback or model.continuing_subword_prefix or model.end_of_word_suffix)
    else:
        fits = isinstance(model, models.Unigram) and not model.alpha and "<0x00>" not in entries  # no byte fallback
    added = tokenizer.get_added_tokens_decoder().values()
    # Such a marker takes all blanks before it, however many they are.
    if not fits or not entries or any(token.lstrip for token in added) or not _begins_words_by_what_precedes(tokenizer):
        return None
    longest_by_beginning: dict[str, int] = {}
    for entry in entries:
        longest_by_beginning[entry[:2]] = max(len(entry), longest_by_beginning.get(entry[:2], 0))
    marker = max((len(token.content) for token in added), default=0)
    steps = _steps(tokenizer.normalizer, "normalizers")
    # A character has up to four units. The cut may split a marker, and blanks or a quote may wait for one character.
    return WordPieces(
        model=model,
        entries=entries,
        longest=max(map(len, entries)),
        longest_by_beginning=longest_by_beginning,
        needs_ascii=not all(step["type"] in LOCAL_NORMALIZERS or step["type"] == "Replace" for step in steps),
        margin=4 * (marker + 4),
    )


def _begins_words_by_what_precedes(tokenizer: Tokenizer) -> bool:
    """Whether a word's beginning and its characters do not depend on what follows far behind them."""
    for step in _steps(tokenizer.pre_tokenizer, "pretokenizers"):
        if step["type"] not in ("ByteLevel", "Metaspace"):
            return False
    for step in _steps(tokenizer.normalizer, "normalizers"):
        if step["type"] == "Replace":
            pattern, content = step["pattern"], step["content"]
            if len(content) > 1 or not (pattern == {"Regex": r"\s+"} or len(pattern.get("String", "  ")) == 1):
                return False
    return True


def _steps(component: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer as in tokenizer.json, sequences unfolded."""
    if component is None:
        return []

    def unfold(step: dict[str, Any]) -> list[dict[str, Any]]:
        return [each for inner in step[name] for each in unfold(inner)] if step["type"] == "Sequence" else [step]

    return unfold(json.loads(component.__getstate__()))
