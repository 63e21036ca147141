"""Explanations by a real tritonserver of a model whose weights are written by hand, so every score is known.

Attention is a plain mean over all tokens, and the token of one word points in a direction of its own. The score then
depends only on the share of that word among the tokens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loadtest.local_server import LocalServer
from polyhead.export import export_checkpoint
from polyhead.predictor import Predictor
from polyhead.schema import Head, Schema
from polyhead_client import AsyncClient, Client
from polyhead_training.model.tokenizer import train_tokenizer
from tests.e2e.processes import ONE_THREAD
from tests.tiny import MAX_LENGTH, TEXTS, tiny_model, tiny_spec, write_model

CHANNELS = 32
SMALL, LARGE = 0.1, 8.0  # the length of an embedding, and how much the mean outweighs it
PLANTED = "goal"
SCHEMA = Schema(
    [
        Head(name="topic", kind="single_label", labels=("news", "sport")),
        Head(name="mood", kind="multi_label", labels=("happy", "sad"), thresholds=(0.5, 0.5)),
        Head(name="stars", kind="regression"),
    ]
)
WEIGHTS = {0: 0.0, 1: 0.5, 2: 0.25, 3: -0.25, 4: 1.0}  # of the planted direction, by score column
TOKENIZER_TEXTS = [*TEXTS, *(" a goal in the last minute by the striker",) * 50]
EMBEDDED = SMALL * np.array([1.0, -1.0])  # the planted direction, and its opposite


def write_planted_checkpoint(path: Path, text_template: str | None = None) -> None:
    """A GPT-2 with one layer in which only the planted word's token counts."""
    tokenizer = train_tokenizer(TOKENIZER_TEXTS, 400)
    spec = tiny_spec(text_template=text_template)
    model = tiny_model(spec, SCHEMA, n_layer=1)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    embeddings = state["body_model.wte.weight"]
    embeddings[:, 2:4] = SMALL * torch.tensor([1.0, -1.0])
    for token in range(tokenizer.get_vocab_size()):
        if tokenizer.decode([token]).strip() == PLANTED:
            embeddings[token, :4] = SMALL * torch.tensor([1.0, -1.0, 0.0, 0.0])
    for norm in ("body_model.h.0.ln_1", "body_model.h.0.ln_2", "body_model.ln_f"):
        state[f"{norm}.weight"].fill_(1.0)
    state["body_model.h.0.attn.c_attn.weight"][:, 2 * CHANNELS :] = torch.eye(CHANNELS)  # values; all keys are alike
    state["body_model.h.0.attn.c_proj.weight"].copy_(LARGE * torch.eye(CHANNELS))
    (head,) = (name for name in state if name.startswith("head."))
    for column, weight in WEIGHTS.items():
        state[head][column, 0] = weight
    model.load_state_dict(state)
    fields = None if text_template is None else [json.dumps({"Body": text}) for text in TEXTS]
    write_model(path, model, spec, SCHEMA, tokenizer, fields)


def normalized(vector: np.ndarray) -> np.ndarray:
    return np.asarray((vector - vector.mean()) / np.sqrt(vector.var() + 1e-5))


def expected(planted: int, others: int, last_is_planted: bool = False) -> dict[str, float]:
    """The scores of a text with so many planted tokens and so many others, computed with NumPy alone."""
    directions = np.zeros((2, CHANNELS))
    directions[0, :2] = directions[1, 2:4] = EMBEDDED
    mean = (planted * normalized(directions[0]) + others * normalized(directions[1])) / (planted + others)
    pooled = normalized(directions[0 if last_is_planted else 1] + LARGE * mean)
    logits = {column: weight * pooled[0] for column, weight in WEIGHTS.items()}
    return {
        "sport": 1 / (1 + np.exp(logits[0] - logits[1])),
        "happy": 1 / (1 + np.exp(-logits[2])),
        "stars": logits[4],
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "checkpoint"
    write_planted_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def planted(checkpoint: Path) -> Iterator[LocalServer]:
    """A server of this model."""
    repository = checkpoint.with_name("repository")
    export_checkpoint(checkpoint, repository)
    with LocalServer(repository, environment=ONE_THREAD) as running:
        yield running


TEXT = "a last minute in the goal by the striker"  # each word is one token


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_planted_word(planted: LocalServer, protocol: Any) -> None:
    """Each word's effect is what the weights say: the planted word raises the scores, each other word dilutes it."""
    with Client(planted.url(protocol), protocol=protocol) as client:
        explanation = client.explain(TEXT)
        assert explanation.prediction.token_count == 9
    whole, without_planted, without_other = expected(1, 8), expected(0, 8), expected(1, 7)
    assert [(reason.head, reason.label) for reason in explanation] == [
        ("topic", "sport"), ("mood", "happy"), ("stars", None),
    ]  # fmt: skip
    for reason in explanation:
        name = reason.label or reason.head
        assert reason.score == pytest.approx(whole[name], abs=1e-4)
        assert whole[name] - without_planted[name] > 0.02
        for word in reason.words[1:]:  # without "a", the text begins with a word that has other tokens
            without = without_planted if word.text == PLANTED else without_other
            assert word.effect == pytest.approx(whole[name] - without[name], abs=2e-4)
        assert reason.strongest()[0].text == PLANTED


def test_repeated_word_and_asyncio(planted: LocalServer) -> None:
    """Without one of two planted words the other still counts; without both the score is that of a text without it."""

    async def run() -> None:
        async with AsyncClient(planted.url("http")) as client:
            reason = (await client.explain("a last goal by the goal in the minute", "stars"))["stars"]
        goals = [word for word in reason.words if word.text == PLANTED]
        assert [word.places for word in goals] == [2, 2]
        for word in goals:
            assert word.effect == pytest.approx(expected(2, 7)["stars"] - expected(1, 7)["stars"], abs=1e-3)
            alone = expected(2, 7)["stars"] - expected(0, 7)["stars"]
            assert word.effect_everywhere == pytest.approx(alone, abs=1e-3)

    asyncio.run(run())


def test_effects_are_the_differences_of_scores(planted: LocalServer, checkpoint: Path) -> None:
    """An effect is the score minus the score of the text that a reader would write without the word."""
    texts = [TEXT, "a last minute in the by the striker", "a last minute in the goal by the"]
    predictor = Predictor.load(checkpoint)
    whole, *without = predictor.score(predictor.encode(texts))[:, 1].tolist()
    with Client(planted.url("http")) as client:
        words = client.explain(TEXT, label="sport")["topic"].words
    assert [words[5].effect, words[-1].effect] == pytest.approx([whole - score for score in without], abs=1e-5)


def test_truncated(planted: LocalServer) -> None:
    """A planted word after the end of what the model reads is not left out; one before it is the strongest."""
    filler = "in the last minute by the striker "
    with Client(planted.url("http")) as client:
        explanation = client.explain(f"a last goal {filler * 12}a goal", "topic", "sport")
    reason = explanation["topic"]
    assert explanation.prediction.truncated
    assert explanation.prediction.token_count == MAX_LENGTH
    assert MAX_LENGTH <= len(reason.words) <= MAX_LENGTH + 6
    assert reason.unread[0].text.endswith("a goal")
    assert reason.words[2].text == PLANTED
    assert reason.words[2].effect == pytest.approx(expected(1, 47)["sport"] - expected(0, 48)["sport"], abs=2e-4)
    assert [word.effect for word in reason.words[MAX_LENGTH:]] == pytest.approx(
        [0.0] * (len(reason.words) - MAX_LENGTH)
    )


def test_fields(tmp_path: Path) -> None:
    """Words of fields are left out in their field, and the server's template makes the text."""
    write_planted_checkpoint(tmp_path / "checkpoint", "[[{Title} by ]]{Body}")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository")
    with (
        LocalServer(tmp_path / "repository", environment=ONE_THREAD) as running,
        Client(running.url("http")) as client,
    ):
        reason = client.explain({"Body": "the striker in the last minute", "Title": "a last goal"}, "stars")["stars"]
        assert client.explain("goal", "stars")["stars"].words[0].effect is None
    whole = expected(1, 9)["stars"]
    assert reason.score == pytest.approx(whole, abs=1e-3)
    assert [(word.field, word.text) for word in reason.words[:4]] == [
        ("Title", "a"), ("Title", "last"), ("Title", "goal"), ("Body", "the"),
    ]  # fmt: skip
    assert reason.words[2].effect == pytest.approx(whole - expected(0, 9)["stars"], abs=1e-3)
    assert reason.words[3].effect == pytest.approx(whole - expected(1, 8)["stars"], abs=1e-3)
