"""Texts to tokens: a long text is cheap, and its first tokens are those of the whole text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from polyhead import encode as module
from polyhead.encode import encode, most_characters
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


@settings(max_examples=1000)
@given(st.lists(PIECES, max_size=60).map("".join), st.integers(1, 9), st.integers(1, 8), st.sampled_from(TOKENIZERS))
def test_the_first_tokens_are_those_of_the_whole_text(
    text: str, max_length: int, characters: int, tokenizer: Tokenizer
) -> None:
    """Wherever a text is cut before tokenizing, ids and truncation are those of the whole text."""
    whole = tokenizer.encode(text).ids
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "FIRST_CHARACTERS", characters)
        (found,) = encode([text], tokenizer, max_length)
    if found.error is None:
        assert list(found.token_ids) == whole[:max_length]
        assert found.truncated == (len(whole) > max_length)
    else:
        assert not text.strip() or not whole


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_marker_may_lie_across_the_cut(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a marker, or the blanks before a marker, are not read as words, wherever the cut falls."""
    tokenizer.add_special_tokens([MARKER])
    for characters in (1, 2, 3, 4):
        monkeypatch.setattr(module, "FIRST_CHARACTERS", characters)
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


@pytest.mark.parametrize("long", ["x" * 20_000_000, " " * 20_000_000 + "word"])
def test_a_text_without_words_is_an_error_of_its_own(long: str) -> None:
    """A word of millions of letters is an error within seconds; a word just below the limit is answered."""
    began = time.monotonic()
    bad, good = encode([long, "Rain."], tiny_tokenizer(), 48)
    assert time.monotonic() - began < 5
    assert bad.error == f"the text's first {most_characters(48)} characters have too few words"
    assert good.error is None
    word = "y" * (most_characters(48) - 1)
    (answered,) = encode([word], tiny_tokenizer(), 48)
    assert list(answered.token_ids) == tiny_tokenizer().encode(word).ids[:48]


def test_no_more_is_tokenized_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary long text is tokenized once, only to its first characters."""
    sizes = []

    class Counting:
        def get_added_tokens_decoder(self) -> dict[int, object]:
            return {}

        def encode_batch(self, texts: list[str]) -> object:
            sizes.append([len(text) for text in texts])
            return tiny_tokenizer().encode_batch(texts)

    encode(["Some ordinary words, quite a few of them. " * 1000], Counting(), 48)  # type: ignore[arg-type]
    assert sizes == [[module.FIRST_CHARACTERS * 48]]
