"""Text transforms become part of the tokenizer, so that serving applies them as training did."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, normalizers

from polyhead_training.errors import ConfigError
from polyhead_training.model.tokenizer import train_tokenizer, with_transforms


def copy_of(tokenizer: Tokenizer) -> Tokenizer:
    """As it is read from a checkpoint."""
    return Tokenizer.from_str(tokenizer.to_str())


@pytest.mark.parametrize(
    ("names", "text", "same_as"),
    [
        (["strip"], "  two words\n", "two words"),
        (["collapse_whitespace"], "two \n\t words", "two words"),
        (["lowercase"], "TWO Words", "two words"),
        (["strip_accents"], "Größe café", "Große cafe"),
        (["nfc"], "u\u0308ber", "\u00fcber"),
        (["nfkc"], "\ufb01ne \uff12", "fine 2"),
        (["collapse_whitespace", "strip", "lowercase"], "\n TWO\n WORDS ", "two words"),
        (["tests.user_functions:shout", "lowercase"], "Two", "two"),
    ],
)
def test_transforms_hold_in_the_saved_tokenizer(names: list[str], text: str, same_as: str) -> None:
    """A text has the tokens of what it is transformed to."""
    plain = train_tokenizer(["two words"], 257)
    transformed = copy_of(with_transforms(copy_of(plain), names))
    assert transformed.encode(text).ids == plain.encode(same_as).ids != plain.encode(text).ids


def test_a_tokenizer_is_trained_on_transformed_texts() -> None:
    """It learns no token that its transforms never leave."""
    vocabulary = train_tokenizer(["WORD WORD WORD"] * 5, 300, ["lowercase"]).get_vocab()
    assert "word" in vocabulary
    assert "WORD" not in vocabulary


def test_a_tokenizers_own_normalizer_comes_after() -> None:
    """What a pretrained tokenizer does to a text, it does to the transformed one."""
    tokenizer = train_tokenizer(["a"], 257)
    tokenizer.normalizer = normalizers.Replace("ß", "z")
    assert with_transforms(tokenizer, ["lowercase"]).normalizer.normalize_str("ẞ") == "z"


def test_without_names_nothing_changes() -> None:
    """No empty normalizer is written."""
    tokenizer = train_tokenizer(["a"], 257)
    assert with_transforms(copy_of(tokenizer), []).to_str() == tokenizer.to_str()


def test_an_unknown_transform_is_an_error() -> None:
    """The line names it and what is allowed."""
    with pytest.raises(ConfigError, match=r"data\.text_transforms 'upper': must be one of strip, collapse_whitespace"):
        with_transforms(train_tokenizer(["a"], 257), ["upper"])
