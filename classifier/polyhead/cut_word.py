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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

from tokenizers import Tokenizer, models

NEAR = 32  # units of a word between the tokens to prove and `p`; a merge that far away seldom has an effect
MOST_ENDS = 16  # Unigram: places whose tokens are compared; each costs as much as the kept tokens
LOCAL_NORMALIZERS = ("Lowercase", "Prepend", "Replace", "Strip")  # these never compose or reorder characters
# Two characters of which no normalizer composes the second with the first: ASCII, Cyrillic, kana, Chinese, Hangul.
FIRM = re.compile("[ -~\u0400-\u0482\u048a-\u052f\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]{2}")


@dataclass(frozen=True)
class WordPieces:
    """What is known about the words and tokens of a tokenizer. The units are characters of the model's own alphabet.

    Attributes:
        model: the tokenizer's model.
        is_bpe: whether it is BPE; else it is Unigram.
        unknown: BPE's token for unknown characters.
        entries: the vocabulary: token to id.
        longest: length of the longest token.
        longest_by_beginning: the same by a token's first two units.
        composes: whether the normalizer may change a character together with those that follow.
        margin: units at the end of a cut text's last word that the text after the cut may change.
    """

    model: models.Model
    is_bpe: bool
    unknown: str | None
    entries: Mapping[str, int] = field(repr=False)
    longest: int
    longest_by_beginning: Mapping[str, int] = field(repr=False)
    composes: bool
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
    margin = pieces.margin
    if pieces.composes:
        end = text[-margin:]
        firm = [match.end() - 1 for match in FIRM.finditer(end)]
        if not firm:
            return False
        margin += 4 * len(tokenizer.normalizer.normalize_str(end[firm[-1] :]))
    word, ends = "".join(tokens), [0, *accumulate(map(len, tokens))]
    safe = len(word) - margin
    barrier = 0  # the tokens up to here stay, because no merge crosses an unknown character
    if pieces.is_bpe and pieces.unknown in tokens:
        places = (n for n in range(len(tokens), 0, -1) if ends[n] <= safe and tokens[n - 1] == pieces.unknown)
        barrier = next(places, 0)
    if wanted < barrier:
        return True
    last = safe - pieces.longest  # `p` may not be greater
    if ends[wanted] > last:
        return False
    first = max(wanted - 1, barrier) if pieces.is_bpe else 0
    expected = list(ids[first:wanted])
    for p in sorted({min(ends[wanted] + NEAR, last), last}):
        boundaries = _possible_ends(word, p, pieces)
        if not pieces.is_bpe and len(boundaries) > MOST_ENDS:
            return False
        if boundaries and all(
            _first_ids(pieces, word[ends[first] : end], len(expected)) == expected for end in boundaries
        ):
            return True
    return False


def _first_ids(pieces: WordPieces, word: str, count: int) -> list[int]:
    return [token.id for token in pieces.model.tokenize(word)[:count]]


def _possible_ends(word: str, p: int, pieces: WordPieces) -> list[int]:
    """Where a token that covers the unit `p` can end; empty if that unit is unknown."""
    if word[p] not in pieces.entries:
        return []
    ends: set[int] = set()
    for start in range(max(0, p + 1 - pieces.longest), p + 1):
        most = pieces.longest_by_beginning.get(word[start : start + 2], 1)
        ends.update(end for end in range(p + 1, start + most + 1) if word[start:end] in pieces.entries)
    return sorted(ends)


@lru_cache(maxsize=4)
def word_pieces(tokenizer: Tokenizer) -> WordPieces | None:
    """What the proof needs; None for a tokenizer to which the proof does not apply."""
    model = tokenizer.model
    entries = tokenizer.get_vocab(with_added_tokens=False)
    is_bpe, unknown = isinstance(model, models.BPE), None
    if isinstance(model, models.BPE):
        unknown = model.unk_token
        marks = model.continuing_subword_prefix or model.end_of_word_suffix
        merges_unknown = unknown is not None and any(unknown in entry for entry in entries if entry != unknown)
        fits = not (model.dropout or model.byte_fallback or marks or merges_unknown)
    else:
        fits = isinstance(model, models.Unigram) and not model.alpha and "<0x00>" not in entries  # no byte fallback
    normalizers = _steps(tokenizer.normalizer, "normalizers")
    splitters = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    if (
        not fits
        or not entries
        or any(added_tokens(tokenizer).values())  # such a marker takes all blanks before it, however many they are
        or any(step["type"] not in ("ByteLevel", "Metaspace") for step in splitters)
        or not all(_is_local(step) for step in normalizers if step["type"] == "Replace")
    ):
        return None
    longest_by_beginning: dict[str, int] = {}
    for entry in entries:
        longest_by_beginning[entry[:2]] = max(len(entry), longest_by_beginning.get(entry[:2], 0))
    return WordPieces(
        model=model,
        is_bpe=is_bpe,
        unknown=unknown,
        entries=entries,
        longest=max(map(len, entries)),
        longest_by_beginning=longest_by_beginning,
        composes=any(step["type"] not in LOCAL_NORMALIZERS for step in normalizers),
        # A character has up to four units. The cut may split a marker, and blanks or a quote depend on what follows.
        margin=4 * (max(map(len, added_tokens(tokenizer)), default=0) + 4),
    )


@lru_cache(maxsize=4)
def added_tokens(tokenizer: Tokenizer) -> Mapping[str, bool]:
    """The text of each added token, and whether it takes the blanks before it."""
    return {token.content: token.lstrip for token in tokenizer.get_added_tokens_decoder().values()}


def _is_local(replace: Mapping[str, Any]) -> bool:
    """Whether a Replace step replaces single characters or runs of blanks by at most one character."""
    pattern = replace["pattern"]
    return len(replace["content"]) <= 1 and (pattern == {"Regex": r"\s+"} or len(pattern.get("String", "")) == 1)


def _steps(component: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer as in tokenizer.json, sequences unfolded."""

    def unfold(step: dict[str, Any]) -> list[dict[str, Any]]:
        return [each for inner in step[name] for each in unfold(inner)] if step["type"] == "Sequence" else [step]

    return [] if component is None else unfold(json.loads(component.__getstate__()))
