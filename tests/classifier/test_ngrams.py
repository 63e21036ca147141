"""N-grams: their terms, weights and logits by an independent library, and a file that is read as it was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from polyhead import ngrams
from polyhead.errors import CheckpointError
from polyhead.ngrams import NGrams, TermReader, Vocabulary, read_ngrams, write_ngrams

TEXTS = [
    "Good dogs, good DOGS!",
    "a cat sat on the mat; the cat sat",
    "naïve Übermut, ça va?",
    "x",
    "don't stop-believing 12,5 % of it",
    "the dogs sat",
]
WIDTH = 5


def fitted(texts: list[str], seed: int = 0) -> NGrams:
    """N-grams over all terms of the texts, with drawn weights."""
    reader = TermReader(learns=True)
    for text in texts:
        reader.read(text)
    draw = np.random.default_rng(seed)
    rarity = draw.uniform(1, 3, len(reader.ids)).astype(np.float32)
    weights = torch.from_numpy(draw.standard_normal((len(reader.ids), WIDTH)).astype(np.float32))
    return NGrams(Vocabulary(list(reader.ids), rarity), weights, torch.arange(WIDTH, dtype=torch.float32))


def test_terms_of_a_text() -> None:
    """Words, pairs across punctuation, and characters with the blanks around a piece."""
    reader = TermReader(learns=True)
    numbers = reader.read("So, so")
    spelled = list(reader.ids)
    assert [spelled[number] for number in numbers] == [
        "so", "~ s", "~so", "~o,", "~, ", "~ so", "~so,", "~o, ", "~ so,", "~so, ", "~ so, ",
        "so", "~ s", "~so", "~o ", "~ so", "~so ", "~ so ",
        "so so",
    ]  # fmt: skip
    assert TermReader(["so so"]).read("So, so") == [0]


def test_scripts_without_blanks_have_a_word_per_character() -> None:
    """As the linear baseline reads them."""
    reader = TermReader(["東", "東京", "東 京"])
    assert reader.read("東京") == [0, 2]


def test_weights_are_those_of_scikit_learn() -> None:
    """Each kind of terms as its TfidfVectorizer weighs them."""
    kinds = [
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+", norm="l2"),
        TfidfVectorizer(ngram_range=ngrams.SIZES[:: len(ngrams.SIZES) - 1], sublinear_tf=True, analyzer="char_wb"),
    ]
    expected = sparse.hstack([kind.fit_transform(TEXTS) for kind in kinds]).toarray()
    words, characters = ([str(term) for term in kind.get_feature_names_out()] for kind in kinds)
    terms = words + [ngrams.CHARACTERS + term for term in characters]
    rarity = np.concatenate([kind.idf_ for kind in kinds]).astype(np.float32)
    found = Vocabulary(terms, rarity).weigh(TEXTS)
    matrix = sparse.csr_matrix((found.weights, found.terms, found.starts), expected.shape).toarray()
    np.testing.assert_allclose(matrix, expected, atol=1e-6)


def test_logits_are_the_product() -> None:
    """Of the weights of a text and the weights of the terms, and the bias; a text without terms has the bias."""
    model = fitted(TEXTS)
    found = model.vocabulary.weigh([*TEXTS, "嗎"])
    matrix = sparse.csr_matrix((found.weights, found.terms, found.starts), (7, len(model.weights)))
    expected = matrix @ model.weights.numpy() + np.arange(WIDTH)
    logits = model.logits([*TEXTS, "嗎"])
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert logits[-1].tolist() == [0, 1, 2, 3, 4]
    assert model.logits([]).shape == (0, WIDTH)


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=40))
def test_a_text_has_the_same_bits_alone_and_beside_others(texts: list[str]) -> None:
    """Wherever it stands."""
    model = fitted(TEXTS)
    alone = np.concatenate([model.logits([text]) for text in texts])
    assert (alone == model.logits(texts)).all()


def test_long_texts_and_pieces_are_bounded() -> None:
    """Only the beginning is read, and a piece without blanks has few terms; it is not remembered."""
    reader = TermReader(learns=True)
    assert reader.read("a " * 4_000) == reader.read("a " * 2_000)
    assert len(reader.read("x" * 100_000)) < 5 * ngrams.MOST_OF_A_TOKEN
    assert list(reader._known) == ["a"]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgetting changes no answer."""
    monkeypatch.setattr(ngrams, "MOST_KNOWN", 3)
    model = fitted(TEXTS)
    first = model.logits(TEXTS)
    assert len(model.vocabulary._reader._known) <= 3
    assert (model.logits(TEXTS) == first).all()


def test_written_then_read_is_exact(tmp_path: Path) -> None:
    """Terms, tensors and logits; and everyone may read the file."""
    model, path = fitted(TEXTS), tmp_path / "ngrams.safetensors"
    write_ngrams(path, model)
    found = read_ngrams(path, WIDTH)
    assert found.vocabulary.terms == model.vocabulary.terms
    assert (found.logits(TEXTS) == model.logits(TEXTS)).all()
    assert path.stat().st_mode & 0o777 == 0o644


Tensors = dict[str, torch.Tensor]


def doubled(tensors: Tensors) -> Tensors:
    """The first term is there twice."""
    lines = tensors["terms"].numpy().tobytes().decode().split("\n")
    lines[1] = lines[0]
    return tensors | {"terms": torch.tensor(list("\n".join(lines).encode()), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {k: v for k, v in t.items() if k != "bias"},
            "must hold the tensors terms, rarity, weights and bias",
        ),
        (lambda t: t | {"more": t["bias"].clone()}, "must hold the tensors"),
        (lambda t: t | {"weights": t["weights"][:, :4].contiguous()}, r"weights: must have the shape \(\d+, 5\)"),
        (lambda t: t | {"bias": t["bias"] * float("nan")}, "bias: has numbers that are not finite"),
        (lambda t: t | {"weights": t["weights"].double()}, "weights: must be torch.float32"),
        (lambda t: t | {"rarity": -t["rarity"]}, "rarity: must be above 0"),
        (lambda t: t | {"terms": t["terms"][:-1].clone().fill_(255)}, "terms: is not UTF-8"),
        (lambda t: t | {"terms": t["terms"][:9].clone()}, r"terms: must be \d+ different lines"),
        (doubled, r"terms: must be \d+ different lines"),
        (lambda t: t | {"rarity": torch.tensor(1.0)}, r"rarity: must have the shape \(1,\), got \(\)"),
        (lambda t: t | {"terms": torch.tensor(97, dtype=torch.uint8)}, r"terms: must have the shape \(1,\), got \(\)"),
        (lambda t: t | {"terms": t["terms"][None]}, r"terms: must have the shape \(\d+,\), got \(1, \d+\)"),
        (lambda t: t | {"bias": t["bias"][0]}, r"bias: must have the shape \(5,\), got \(\)"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Callable[[Tensors], Tensors], message: str) -> None:
    """With one line that names the file and the tensor."""
    path = tmp_path / "ngrams.safetensors"
    write_ngrams(path, fitted(TEXTS))
    save_file(change(load_file(path)), path)
    with pytest.raises(CheckpointError, match=message) as error:
        read_ngrams(path, WIDTH)
    assert str(path) in str(error.value)


def test_a_missing_or_cut_file_is_refused(tmp_path: Path) -> None:
    """As the other files of a checkpoint."""
    path = tmp_path / "ngrams.safetensors"
    with pytest.raises(CheckpointError, match="is missing"):
        read_ngrams(path, WIDTH)
    write_ngrams(path, fitted(TEXTS))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_ngrams(path, WIDTH)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Opening it would wait for its writer, for ever."""
    os.mkfifo(tmp_path / "ngrams.safetensors")
    with pytest.raises(CheckpointError, match="is not a file"):
        read_ngrams(tmp_path / "ngrams.safetensors", WIDTH)


@pytest.mark.parametrize("most", ["MOST_WEIGHTS", "MOST_TERMS", "MOST_TERM_BYTES"])
def test_too_many_weights_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str) -> None:
    """The size is looked at before the tensors."""
    path = tmp_path / "ngrams.safetensors"
    write_ngrams(path, fitted(TEXTS))
    monkeypatch.setattr(ngrams, most, 100)
    with pytest.raises(CheckpointError, match="larger than what is read"):
        read_ngrams(path, WIDTH)
