"""N-grams in a checkpoint: their logits are added for every text, golden rows prove them, and their file is copied."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from polyhead.checkpoint import read_checkpoint, write_checkpoint
from polyhead.checkpoint_files import NGRAMS, checkpoint_files, copy_checkpoint
from polyhead.decode import to_scores
from polyhead.encode import encode
from polyhead.errors import CheckpointError, ToleranceError
from polyhead.ngrams import NGrams, TermReader, Vocabulary
from polyhead.predictor import Predictor
from polyhead.text_queue import ScoreRequest, TextQueue
from polyhead_training.fitting.checkpoint_writing import golden_rows
from tests.tiny import MAX_LENGTH, SCHEMA, TEXTS, tiny_model, tiny_spec, tiny_tokenizer

TEMPLATE = "[[{title}. ]]{body}"
Array = NDArray[np.float32]


def some_ngrams() -> NGrams:
    """All terms of the texts, with weights that are large enough to change answers."""
    reader = TermReader(learns=True)
    for text in TEXTS:
        reader.read(text)
    draw = np.random.default_rng(0)
    weights = torch.from_numpy(draw.standard_normal((len(reader.ids), SCHEMA.width)).astype(np.float32))
    rarity = np.ones(len(reader.ids), np.float32)
    return NGrams(Vocabulary(list(reader.ids), rarity), weights, torch.zeros(SCHEMA.width))


def write(path: Path, text_template: str | None = None) -> tuple[torch.nn.Module, NGrams]:
    """A tiny checkpoint with n-grams; returns the transformers model and the n-grams."""
    spec, ngrams, tokenizer = tiny_spec(text_template=text_template), some_ngrams(), tiny_tokenizer()
    model = tiny_model(spec)
    golden = golden_rows(TEXTS, model, tokenizer, SCHEMA, MAX_LENGTH, 5, 0, ngrams=ngrams)
    write_checkpoint(
        path, config=model.config.to_dict(), spec=spec, schema=SCHEMA, tensors=model.state_dict(),
        tokenizer_json=tokenizer.to_str(), ngrams=ngrams, golden=golden, metrics={},
    )  # fmt: skip
    return model, ngrams


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with n-grams."""
    write(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@torch.inference_mode()
def test_scores_are_of_the_summed_logits(tmp_path: Path) -> None:
    """Those of transformers and those of the n-grams, which read the whole text."""
    model, ngrams = write(tmp_path / "checkpoint")
    predictor = Predictor.load(tmp_path / "checkpoint")
    encoded = predictor.encode([*TEXTS, " "])
    scores = predictor.score(encoded)
    for text, found in zip(TEXTS, scores, strict=False):
        (one,) = encode([text], tiny_tokenizer(), MAX_LENGTH)
        network = model(torch.tensor([one.token_ids])).logits.numpy()
        np.testing.assert_allclose(found, to_scores(network + ngrams.logits([text]), SCHEMA)[0], atol=1e-5)
    assert np.isnan(scores[-1]).all()
    assert predictor.check_golden() < 1e-5


def test_a_text_has_the_same_scores_alone_and_in_a_batch(checkpoint: Path) -> None:
    """As without n-grams."""
    predictor = Predictor.load(checkpoint)
    alone = np.concatenate([predictor.score(predictor.encode([text])) for text in TEXTS])
    np.testing.assert_allclose(predictor.score(predictor.encode(TEXTS)), alone, atol=1e-6)


def test_texts_that_differ_behind_max_length_are_not_equal(checkpoint: Path) -> None:
    """Neither their scores, nor in the queue, which computes equal texts once."""
    predictor = Predictor.load(checkpoint)
    texts = ["word " * 100 + "Rain", "word " * 100 + "Parliament", "word " * 100 + "Rain"]
    encoded = predictor.encode(texts)
    assert encoded[0].token_ids == encoded[1].token_ids
    first, second, third = predictor.score(encoded)
    assert (first == third).all()
    assert np.abs(first - second).max() > 0.01
    queue = TextQueue(64, 16)
    queue.add(ScoreRequest(encoded, SCHEMA.width, lambda: None))
    assert len(queue._waiting) == 2


def test_fields_are_rendered_for_the_n_grams(tmp_path: Path) -> None:
    """They read what the network reads."""
    write(tmp_path / "checkpoint", TEMPLATE)
    predictor = Predictor.load(tmp_path / "checkpoint")
    fields, plain = predictor.score(
        [
            *predictor.encode([json.dumps({"title": "Rain", "body": "Prices rose"})]),
            *predictor.encode(["Rain. Prices rose"], are_rendered=True),
        ]
    )
    assert (fields == plain).all()


def test_the_file_belongs_to_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """It is copied; without it the checkpoint is incomplete."""
    assert checkpoint / NGRAMS in checkpoint_files(checkpoint)
    copy = tmp_path / "copy"
    copy_checkpoint(checkpoint, copy)
    assert read_checkpoint(copy).ngrams is not None
    (copy / NGRAMS).unlink()
    with pytest.raises(CheckpointError, match=r"ngrams\.safetensors: is missing"):
        read_checkpoint(copy)


def test_golden_rows_prove_the_n_grams(checkpoint: Path) -> None:
    """Other weights, or a config.json that leaves them out, are refused."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["polyhead"]["ngrams"] = False
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="ngrams"):
        Predictor.load(checkpoint)
    config["polyhead"]["ngrams"] = True
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(checkpoint / NGRAMS)
    save_file(tensors | {"weights": tensors["weights"].flip(1).contiguous()}, checkpoint / NGRAMS)
    with pytest.raises(ToleranceError):
        Predictor.load(checkpoint)
