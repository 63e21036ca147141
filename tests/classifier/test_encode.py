"""Texts to tokens: a long text is cheap, and its first tokens are those of the whole text."""

from __future__ import annotations

import time
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from polyhead import cut_word
from polyhead import encode as module
from polyhead.encode import EncodedText, encode, most_bytes
from tests.tiny import TEXTS, tiny_tokenizer


def wordwise_tokenizer() -> Tokenizer:
    """A BPE over words that marks blanks, as SentencePiece does."""
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["?"], show_progress=False))
    return tokenizer


TOKENIZERS = [tiny_tokenizer(), wordwise_tokenizer()]
MARKER = "<|endoftext|>"
WORDS = ["word", "a", "'s", "'", "12345", "…", "東京", "🙂", "e\u0301", "x" * 30]
PIECES = st.sampled_from([*WORDS, " ", "   ", "\n", "\r\n\t", MARKER, "<|endo"])


LONG_TEXTS = {
    "one letter": "a",
    "letters": "qwjhxkzvbnmpfdgclrtys",
    "base64": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ",
    "bases": "ACGTTGCAAGCT",
    "Chinese": "我们今天去公园看花很多人都在那里照相",
    "Chinese sentences": "我们今天去公园看花，很多人都在那里照相。",
    "Japanese": "すもももももももものうち",
    "Thai": "ภาษาไทยเป็นภาษาที่มีระดับเสียง",
    "addresses": "https://example.org/a/b?c=d&e=f%20",
    "lines": "x\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
    "emoji": "👨\u200d👩\u200d👧\u200d👦",
    "NUL": "\0",
    "accents": "\u0301",
    "markers": MARKER,
    "dashes": "-",
}


class Counting:
    """A tokenizer that notes how many bytes are tokenized; by default the tiny one."""

    def __init__(self, costs: list[int], tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer or tiny_tokenizer()
        self._costs = costs

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)

    def encode_batch(self, texts: list[str]) -> object:
        self._costs.extend(len(text.encode("utf-8")) for text in texts)
        return self._tokenizer.encode_batch(texts)

    def encode_batch_fast(self, texts: list[str]) -> object:
        self._costs.extend(len(text.encode("utf-8")) for text in texts)
        return self._tokenizer.encode_batch_fast(texts)


def count_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the units that proofs tokenize."""
    costs: list[int] = []
    first_ids = cut_word._first_ids

    def counted(pieces: cut_word.WordPieces, word: str, count: int) -> list[int]:
        costs.append(len(word))
        return first_ids(pieces, word, count)

    monkeypatch.setattr(cut_word, "_first_ids", counted)
    return costs


@settings(max_examples=1000)
@given(st.lists(PIECES, max_size=60).map("".join), st.integers(1, 9), st.integers(1, 8), st.sampled_from(TOKENIZERS))
def test_the_first_tokens_are_those_of_the_whole_text(
    text: str, max_length: int, characters: int, tokenizer: Tokenizer
) -> None:
    """Wherever a text is cut before tokenizing, ids and truncation are those of the whole text."""
    whole = tokenizer.encode(text).ids
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "FIRST_BYTES", characters)
        (found,) = encode([text], tokenizer, max_length)
    if found.error is None:
        assert list(found.token_ids) == whole[:max_length]
        assert found.truncated == (len(whole) > max_length)
    else:
        assert not text.strip() or not whole


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_marker_may_lie_across_the_cut(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a marker, or the blanks before a marker, are not read as words, wherever the cut falls."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens([MARKER])
    for characters in (1, 2, 3, 4):
        monkeypatch.setattr(module, "FIRST_BYTES", characters)
        for blanks in range(4):
            for before in range(12):
                text = "a " * before + "b" + " " * blanks + MARKER + " c" * 30
                whole = tokenizer.encode(text).ids
                for max_length in range(2, 20):
                    (found,) = encode([text], tokenizer, max_length)
                    assert list(found.token_ids) == whole[:max_length]


def test_a_text_of_many_megabytes_is_fast() -> None:
    """A text of 30 MB takes a fraction of a second; short texts beside it keep their places."""
    long = "A sentence of some words, and another. " * 800_000
    began = time.monotonic()
    first, second, third = encode(["Rain.", long, "Snow."], tiny_tokenizer(), 48)
    assert time.monotonic() - began < 2
    assert second.truncated
    assert list(second.token_ids) == tiny_tokenizer().encode(long[:1000]).ids[:48]
    assert [list(text.token_ids) for text in (first, third)] == [
        tiny_tokenizer().encode(t).ids for t in ("Rain.", "Snow.")
    ]


@pytest.mark.parametrize("name", LONG_TEXTS)
def test_a_long_text_of_any_kind_costs_what_its_kept_tokens_cost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of megabytes is answered after tokenizing at most 12 times the bytes of its kept tokens, and 1 kB."""
    text = LONG_TEXTS[name] * (2_000_000 // len(LONG_TEXTS[name]))
    tokenizer = tiny_tokenizer()
    for max_length in (16, 64, 256, 1024):
        costs = count_bytes(monkeypatch)
        (found,) = encode([text], Counting(costs), max_length)  # type: ignore[arg-type]
        kept = tokenizer.encode(text[: 70 * max_length + 200])
        assert (list(found.token_ids), found.truncated, found.error) == (kept.ids[:max_length], True, None)
        bytes_kept = len(text[: kept.offsets[max_length - 1][1]].encode("utf-8"))
        assert sum(costs) <= 12 * bytes_kept + 1000


@pytest.mark.parametrize("text", ["x" * 1_000_000, "東京" * 500_000, "e" + "\u0301" * 500_000])
def test_a_text_without_words_is_an_error_of_its_own(text: str) -> None:
    """If nothing proves the tokens of a long word, the text is an error after a bounded cost; others are answered."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    for max_length in (16, 48, 1024):
        costs: list[int] = []
        bad, good = encode([text, "Rain."], Counting(costs, tokenizer), max_length)  # type: ignore[arg-type]
        assert bad.error is not None
        assert bad.error.endswith(" characters have too few words")
        assert good.error is None
        assert sum(costs) < 1.7 * most_bytes(tokenizer, max_length)
    word = "y" * (most_bytes(tokenizer, 48) - 1)
    (answered,) = encode([word], tokenizer, 48)
    assert list(answered.token_ids) == tokenizer.encode(word).ids[:48]


def test_a_batch_of_long_words_costs_what_its_texts_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 texts of a megabyte each, all one word: less than 10 kB of each are tokenized."""
    costs = count_bytes(monkeypatch)
    texts = [chr(ord("a") + n % 26) * 1_000_000 for n in range(64)]
    found = encode(texts, Counting(costs), 256)  # type: ignore[arg-type]
    assert [text.error for text in found] == [None] * 64
    assert sum(costs) < 64 * 10_000


def test_chinese_without_blanks_is_answered() -> None:
    """5,000 Chinese characters, with and without punctuation, get the tokens of the whole text."""
    for text in ("我们今天去公园看花，很多人都在那里照相。" * 250, "我们今天去公园看花很多人都在那里照相" * 278):
        for tokenizer in TOKENIZERS:
            for max_length in (16, 64, 256):
                (found,) = encode([text], tokenizer, max_length)
                assert list(found.token_ids) == tokenizer.encode(text).ids[:max_length]


def test_no_more_is_tokenized_than_needed() -> None:
    """An ordinary long text is tokenized once, only to its first characters."""
    costs: list[int] = []
    encode(["Some ordinary words, quite a few of them. " * 1000], Counting(costs), 48)  # type: ignore[arg-type]
    assert costs == [module.FIRST_BYTES * 48]


def test_a_word_that_the_tokenizer_refuses_affects_only_its_text() -> None:
    """A tokenizer without a token for unknown words refuses the whole batch; here the other texts are read."""
    tokenizer = Tokenizer(models.WordLevel({"known": 0, "words": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    first, bad, last, long, bad_long = encode(
        ["known words", "known stranger", "words", "words " * 1000, "words " * 1000 + "stranger " * 1000], tokenizer, 4
    )
    assert (list(first.token_ids), list(last.token_ids), long.truncated) == ([0, 1], [1], True)
    assert bad.error == "the tokenizer does not know a part of the text"
    assert bad_long.error == bad.error


def test_ids_are_arrays_of_int32() -> None:
    """Whole and cut texts have arrays that the engine can copy; their keys equal those of the same ids in a list."""
    whole, cut, blank = encode([TEXTS[0], TEXTS[0] * 40, " "], tiny_tokenizer(), max_length=48)
    assert isinstance(whole.token_ids, array)
    assert isinstance(cut.token_ids, array)
    assert whole.token_ids.typecode == cut.token_ids.typecode == "i"
    assert (whole.truncated, cut.truncated, len(cut.token_ids)) == (False, True, 48)
    assert whole.key == EncodedText(list(whole.token_ids)).key != cut.key
    assert blank.key == EncodedText(()).key
