"""The tokens of a long word: those of its beginning are those of the whole word, or they are not used."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from polyhead import cut_word
from polyhead.cut_word import word_pieces
from polyhead.encode import encode
from tests.tiny import TEXTS, tiny_tokenizer

WORDS = [
    *TEXTS,
    *("".join(random.Random(n).choices("abc", k=1 + n % 40)) for n in range(300)),
    *("-" * n + " " * n + "x" + "\n" * n for n in range(1, 60)),
    *("".join(random.Random(n).choices("我们今天去公园看花", k=1 + n % 20)) for n in range(100)),
]
CLEANING = [normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]


@cache
def trained(kind: str) -> Tokenizer:
    """A tokenizer of each kind to which the proof applies."""
    if kind == "tiny":
        return tiny_tokenizer()
    byte_level = kind.startswith("byte-level")
    unigram = kind.startswith("unigram")
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token=None if byte_level else "<unk>"))
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="one word" not in kind)
        if byte_level
        else pre_tokenizers.Metaspace(split="one word" not in kind)
    )
    if "cleaning" in kind:
        tokenizer.normalizer = normalizers.Sequence(CLEANING)
    if "NFKC" in kind:
        tokenizer.normalizer = normalizers.NFKC()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer: trainers.Trainer
    if unigram:
        trainer = trainers.UnigramTrainer(
            vocab_size=250, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>"
        )
    else:
        special = [] if byte_level else ["<unk>"]
        trainer = trainers.BpeTrainer(
            vocab_size=700, show_progress=False, special_tokens=special, initial_alphabet=alphabet
        )
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


KINDS = [
    "tiny",
    "byte-level",
    "byte-level, one word",
    "byte-level, cleaning",
    "byte-level, NFKC",
    "marked blanks",
    "marked blanks, one word",
    "marked blanks, one word, NFKC",
    "unigram",
    "unigram, one word",
    "unigram, one word, NFKC",
]
RUNS = st.builds(
    lambda piece, times: piece * times,
    st.one_of(
        st.text("abc", min_size=1, max_size=7),
        st.text("我们今天去公园看花", min_size=1, max_size=7),
        st.sampled_from([" ", "\n", "-", "=", "e\u0301", "\u0301", "👩\u200d", "ﷺ", "ᄀ", "각", "か\u3099"]),
        st.sampled_from(["<|endoftext|>", "<|endo", "word ", "Z", "?"]),
        st.text(max_size=3),
    ),
    st.integers(1, 120),
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(RUNS, min_size=1, max_size=5).map("".join), st.integers(1, 40), st.sampled_from(KINDS))
def test_ids_of_a_cut_word_are_those_of_the_whole_text(text: str, max_length: int, kind: str) -> None:
    """Long runs of anything, beside anything: ids and truncation are those of the whole text."""
    tokenizer = trained(kind)
    whole = tokenizer.encode(text).ids
    (found,) = encode([text], tokenizer, max_length)
    if found.error is None:
        assert list(found.token_ids) == whole[:max_length]
        assert found.truncated == (len(whole) > max_length)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0), st.integers(0, 60), st.integers(1, 12))
def test_any_order_of_merges(seed: int, merge_count: int, max_length: int) -> None:
    """A BPE with arbitrary merges in arbitrary order, some of them to the same token, keeps the whole text's ids."""
    rng = random.Random(seed)
    tokens, merges = ["a", "b", "c"], []
    for _ in range(merge_count):
        pair = (rng.choice(tokens), rng.choice(tokens))
        if pair not in merges and len("".join(pair)) <= 10:
            merges.append(pair)
            tokens += ["".join(pair)] * ("".join(pair) not in tokens)
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges))
    text = "".join(rng.choices("abc", k=rng.randrange(1, 40))) * rng.randrange(1, 40)
    (found,) = encode([text], tokenizer, max_length)
    whole = tokenizer.encode(text).ids
    assert (list(found.token_ids), found.truncated) == (whole[:max_length], len(whole) > max_length)


def test_tokens_that_depend_on_the_end_are_not_used() -> None:
    """Merges that run from the end of a word to its beginning: the cut word proves nothing, so all of it is read."""
    letters = [chr(ord("一") + n) for n in range(400)]
    # Each letter merges with the one after it; the pair further behind first. So the word's length decides every pair.
    pairs = list(pairwise(letters))
    vocab = {token: n for n, token in enumerate([*letters, *("".join(pair) for pair in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs[::-1]))
    for length in (399, 400):
        text = "".join(letters[:length])
        (found,) = encode([text], tokenizer, 8)
        assert list(found.token_ids) == tokenizer.encode(text).ids[:8]


@pytest.mark.parametrize("kind", KINDS)
def test_the_proof_applies(kind: str) -> None:
    """Every kind that training makes, and those of most imported checkpoints, can prove tokens of a cut word."""
    assert word_pieces(trained(kind)) is not None
    text = "".join(random.Random(0).choices("abc", k=200_000))
    (found,) = encode([text], trained(kind), 64)
    assert found.error is None


def test_the_proof_does_not_apply_to_what_could_break_it() -> None:
    """Other splitters, word ends with a mark of their own, markers that take blanks, and long replacements."""

    def changed(**parts: object) -> Tokenizer:
        tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return tokenizer

    unfit = [
        changed(pre_tokenizer=pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\s+"), "isolated")),
        changed(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])),
        changed(normalizer=normalizers.Replace(Regex("<[^>]*>"), "")),
        changed(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Replace("a", "aaaaaaaa")])),
        changed(model=models.BPE(vocab={"a": 0, "a</w>": 1}, merges=[], end_of_word_suffix="</w>")),
        changed(model=models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
    ]
    lstrip = changed()
    lstrip.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    for tokenizer in [*unfit, lstrip]:
        assert word_pieces(tokenizer) is None


def test_the_vocabulary_is_read_once() -> None:
    """A tokenizer's vocabulary is read for the first long word only."""
    word_pieces(tiny_tokenizer())
    before = cut_word.word_pieces.cache_info().misses
    encode(["x" * 100_000] * 3, tiny_tokenizer(), 16)
    assert cut_word.word_pieces.cache_info().misses == before
